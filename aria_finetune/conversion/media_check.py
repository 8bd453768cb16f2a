"""Looking at the media a draft refers to before any of them is kept. Writes nothing."""

from __future__ import annotations

import math
import mimetypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from aria_finetune.conversion.options import Verification
from aria_finetune.data_formats.record import MediaReference, PartType
from aria_finetune.errors import MediaError
from aria_finetune.media.images import ImageLimits, image_type
from aria_finetune.media.inspection import Inspector
from aria_finetune.media.paths import MediaRoots, decode_data_uri, is_data_uri
from aria_finetune.media.signatures import HEAD_BYTES
from aria_finetune.media.videos import VideoLimits

REMEMBERED_FILES = 4096
"""Files whose check is remembered, for sources that show one file in many records."""

_LONGEST_ENDING = 20
_UNKNOWN_TYPE = "application/octet-stream"


@dataclass(slots=True)
class CheckedMedia:
    """A medium that may be kept: where its bytes are, its type, pixels as shown, frames, and seconds.

    Width and height are 0 where the verification did not look into the file. Of a document they are the points of
    its page, and `frames` counts pages. Without verification `content` is a path as text at which nobody looked, None
    where there can be no file.
    """

    content: Path | bytes | str | None
    mime: str
    width: int = 0
    height: int = 0
    frames: int | None = None
    duration: float | None = None


class MediaChecker:
    """Finds the files of a source below its roots and looks at each as far as `verify` asks.

    Files are looked into by `inspector`, or by one of its own, which `close` ends.
    """

    def __init__(
        self, roots: Sequence[Path], verify: Verification, max_pixels: int, inspector: Inspector | None = None
    ) -> None:
        self._made_of = (tuple(roots), verify, max_pixels, inspector)
        self._roots = MediaRoots(roots)
        self._verify = verify
        self._max_pixels = max_pixels
        self._inspector = inspector or Inspector()
        self._of_file = lru_cache(REMEMBERED_FILES)(self._check_file)

    def __reduce__(self) -> tuple[type[MediaChecker], tuple[Any, ...]]:
        return MediaChecker, self._made_of

    def close(self) -> None:
        """End the process that looks into media, if it is of this checker."""
        if self._made_of[-1] is None:
            self._inspector.close()

    def check(self, medium: MediaReference) -> CheckedMedia:
        """Find the medium and look at it; with `verify` of `none`, only say where it should be.

        Raises:
            MediaError: it is missing, outside the roots, remote, damaged, or beyond the limits.
        """
        if medium.kind not in {"image", "video", "document"}:
            raise MediaError("unsupported_modality", f"a {medium.kind} can't be read")
        if self._verify == "none":
            return self._unchecked(medium)
        page = medium.page if medium.kind == "document" else None
        if medium.content is not None:
            return self._check_bytes(medium.content, medium.reference, medium.kind, page)
        if is_data_uri(medium.reference):
            return self._check_bytes(decode_data_uri(medium.reference), "", medium.kind, page)
        return self._of_file(self._find(medium), medium.kind, page)

    def document_text(self, reference: str) -> str:
        """The text of all pages of a PDF.

        Raises:
            MediaError: it is missing, outside the roots, damaged, or beyond the limits.
        """
        from aria_finetune.media.documents import DocumentLimits  # noqa: PLC0415 (its library takes long to load)

        return self._inspector.document_text(Path(self._roots.find(reference)), DocumentLimits())

    def _unchecked(self, medium: MediaReference) -> CheckedMedia:
        if medium.content is not None:
            return CheckedMedia(medium.content, _type_of(medium.reference, medium.content))
        if is_data_uri(medium.reference):
            with suppress(MediaError):
                content = decode_data_uri(medium.reference)
                return CheckedMedia(content, _type_of("", content))
            return CheckedMedia(None, _UNKNOWN_TYPE)
        return CheckedMedia(self._roots.name(medium.reference), _type_of_name(medium.reference))

    def _find(self, medium: MediaReference) -> str:
        try:
            return self._roots.find(medium.reference)
        except MediaError as error:
            if error.reason in {"media_missing", "media_remote", "media_unsafe_path"}:
                for other in medium.alternatives:
                    with suppress(MediaError):
                        return self._roots.find(other)
            raise

    def _check_bytes(self, content: bytes, name: str, kind: PartType, page: int | None) -> CheckedMedia:
        if not content:
            raise MediaError("media_unreadable", "a medium without bytes")
        return self._look(content, kind, page) or CheckedMedia(content, _type_of(name, content))

    def _check_file(self, name: str, kind: PartType, page: int | None) -> CheckedMedia:
        path = Path(name)
        if self._verify == "stat" and path.stat().st_size == 0:
            raise MediaError("media_unreadable", f"{path.name} is empty (0 bytes)")
        return self._look(path, kind, page) or CheckedMedia(path, _type_of(path.name))

    def _look(self, content: Path | bytes, kind: PartType, page: int | None) -> CheckedMedia | None:
        if self._verify == "stat":
            return None
        decode = self._verify == "decode"
        return look_into(content, kind, self._inspector, max_pixels=self._max_pixels, page=page, decode=decode)


def look_into(
    content: Path | bytes,
    kind: PartType,
    inspector: Inspector,
    *,
    max_pixels: int = ImageLimits().max_pixels,
    page: int | None = None,
    decode: bool = False,
) -> CheckedMedia:
    """Measure a medium.

    Args:
        content: the medium.
        kind: what it is to be.
        inspector: looks into it.
        max_pixels: limit of an image, of a frame and of a drawn page.
        page: the page of a document that is asked for, counted from 1.
        decode: decode all of it as a check.

    Raises:
        MediaError: it is damaged, or beyond the limits.
    """
    if kind == "image":
        image = inspector.image(content, ImageLimits(max_pixels=max_pixels), decode=decode)
        return CheckedMedia(content, image.mime, image.width, image.height, image.frames)
    if kind == "video":
        limits = VideoLimits(max_pixels=min(max_pixels, VideoLimits().max_pixels))
        video = inspector.video(content, limits, decode=decode)
        return CheckedMedia(content, video.mime, video.width, video.height, video.frames, video.duration)
    # Not at the top: its library takes long to load, and few need it.
    from aria_finetune.media.documents import DocumentLimits  # noqa: PLC0415

    document = inspector.document(content, DocumentLimits(max_pixels=max_pixels), page=page, decode=decode)
    width, height = map(math.ceil, document.sizes[(page or 1) - 1])
    return CheckedMedia(content, "application/pdf", width, height, document.pages)


def _type_of(name: str, content: bytes = b"") -> str:
    """The type that the first bytes or else the name claim."""
    with suppress(MediaError):
        return image_type(content[:HEAD_BYTES])
    return _type_of_name(name)


def _type_of_name(name: str) -> str:
    end = name[-_LONGEST_ENDING:]
    return _type_of_ending(end[end.rfind(".") :])


@lru_cache(1024)
def _type_of_ending(ending: str) -> str:
    return mimetypes.guess_type(f"x{ending}")[0] or _UNKNOWN_TYPE
