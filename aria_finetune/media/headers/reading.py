"""What plain images are, from the first bytes of their files, in a fraction of the time that Pillow takes.

Answers only where Pillow would open the file and say the same. Wherever a file has anything unusual, or is damaged,
the answer is None, and whoever asks leaves it to Pillow. So the readers here refuse nothing, need not know all of
a format, and do little work however hostile a file is: unlike Pillow, they may work in the main process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from aria_finetune.errors import MediaError
from aria_finetune.media.headers.bitmaps import read_bmp, read_pnm
from aria_finetune.media.headers.gif import read_gif
from aria_finetune.media.headers.jpeg import read_jpeg
from aria_finetune.media.headers.png import read_png
from aria_finetune.media.headers.stored import Header, Stored, Unusual, require
from aria_finetune.media.headers.webp import read_webp
from aria_finetune.media.images import ImageInfo, ImageLimits, image_type, require_size
from aria_finetune.media.paths import require_regular_file
from aria_finetune.media.signatures import HEAD_BYTES

READ_BYTES = 4096
"""How much of a file is read at first; the headers of most are shorter."""

_READERS: Mapping[str, Callable[[Stored], Header]] = {
    "image/jpeg": read_jpeg,
    "image/png": read_png,
    "image/webp": read_webp,
    "image/gif": read_gif,
    "image/bmp": read_bmp,
    "image/x-portable-anymap": read_pnm,
}


def read_header(source: Path | bytes, limits: ImageLimits) -> ImageInfo | None:
    """What `probe_image` would say of an image file or of its bytes; None where it takes Pillow to say it.

    Raises:
        MediaError: as `probe_image`, of what is missing, can't be opened, is no image, or is plain and beyond the
            limits.
    """
    if isinstance(source, bytes):
        with suppress(Unusual):
            return _read(source[:HEAD_BYTES], Stored(source, len(source), None), limits)
        return None
    require_regular_file(source)
    try:
        file = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MediaError("media_unreadable", f"{source.name} can't be opened: {error.strerror}") from error
    try:
        start = os.read(file, READ_BYTES)
        return _read(start[:HEAD_BYTES], Stored(start, os.fstat(file).st_size, file), limits)
    except (OSError, Unusual):
        return None
    finally:
        os.close(file)


def _read(head: bytes, stored: Stored, limits: ImageLimits) -> ImageInfo:
    mime = image_type(head)
    if mime not in _READERS:
        raise Unusual
    width, height, orientation, frames = _READERS[mime](stored)
    require(width and height)
    require_size((width, height), limits)
    if orientation >= 5:
        width, height = height, width
    return ImageInfo(width, height, mime, frames)
