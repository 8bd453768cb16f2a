"""Opening one still image: what it is, how large, and its pixels upright as 8-bit RGB.

The file may be hostile. Only the readers listed here are ever reached, the size is judged from the header
before anything is decoded, and a damaged picture is refused rather than half shown. Colour profiles are not
applied. Does not know where files come from, nor what a model does with pictures.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ExifTags import Base as ExifTag

from aria_finetune.errors import MediaError
from aria_finetune.media.paths import require_regular_file
from aria_finetune.media.signatures import HEAD_BYTES, is_avif, looks_like

Reader = Callable[[IO[bytes], str], ImageFile.ImageFile]

_READERS: tuple[tuple[re.Pattern[bytes], Reader, str], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile, "image/png"),
    # Also MPO, a JPEG with further pictures behind the first.
    (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.jpeg_factory, "image/jpeg"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile, "image/webp"),
    (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile, "image/gif"),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile, "image/bmp"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile, "image/tiff"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), Jpeg2KImagePlugin.Jpeg2KImageFile, "image/jp2"),
    (re.compile(rb"P[1-6]\s"), PpmImagePlugin.PpmImageFile, "image/x-portable-anymap"),
)

# What Pillow's readers were seen to raise on damaged files.
_READER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, MemoryError,
    RuntimeError, AssertionError, struct.error, zlib.error,
)  # fmt: skip

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is accepted: `max_pixels` in all, `min_side` in pixels, and the longer side over the shorter."""

    max_pixels: int = 64_000_000
    min_side: int = 14
    max_ratio: float = 200.0


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Width and height in pixels as shown (after EXIF orientation), type from the bytes, number of frames."""

    width: int
    height: int
    mime: str
    frames: int


def probe_image(source: Path | bytes, limits: ImageLimits) -> ImageInfo:
    """Read the header of an image file or of its bytes; no pixel is decoded.

    Raises:
        MediaError: `media_missing`, `media_unreadable`, `media_too_large` or `media_too_small`.
    """
    with _opened(source, limits) as (image, mime):
        width, height = image.size
        # Pillow's TIFF reader gives the size as shown already.
        if mime != "image/tiff" and _header_orientation(image) >= 5:
            width, height = height, width
        return ImageInfo(width=width, height=height, mime=mime, frames=getattr(image, "n_frames", 1))


def open_image(source: Path | bytes, limits: ImageLimits) -> Image.Image:
    """Decode an image file, or its bytes, into an upright 8-bit RGB picture that carries no metadata.

    EXIF orientation is applied; of several frames the first is taken; transparency is laid over white; grey
    values of 16 bits are divided by 257 and rounded (colour of 16 bits per channel reaches us from Pillow as
    its high byte); CMYK, palettes and 1-bit pictures go through Pillow's conversion. Floating-point pictures
    are taken as 0..1 when every value lies there, else as 0..255, else refused.

    Raises:
        MediaError: `media_missing`, `media_unreadable` (damaged, cut, or not an image of a listed kind),
            `media_too_large` or `media_too_small`.
    """
    with _opened(source, limits) as (image, _):
        image.load()
        orientation = _orientation(image.getexif)
        picture = _as_rgb(image)
        picture = picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture
    picture.info.clear()
    return picture


def flatten(image: Image.Image) -> Image.Image:
    """A picture with transparency, laid over white, as RGB."""
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def image_type(head: bytes) -> str:
    """The type of an image of a listed kind, from the first bytes of its file.

    Raises:
        MediaError: `media_unreadable`, it is no such image.
    """
    return _reader_for(head)[1]


@contextmanager
def _opened(source: Path | bytes, limits: ImageLimits) -> Iterator[tuple[ImageFile.ImageFile, str]]:
    with _bytes_of(source) as stream:
        head = stream.read(HEAD_BYTES)
        reader, mime = _reader_for(head)
        stream.seek(0)
        try:
            with _STRICT_LOADING:
                # Not Image.open: its own bomb check is one global for the whole process, and ours decides.
                image = reader(stream, "")
                require_size(image.size, limits)
                yield image, mime
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise MediaError("media_too_large", str(error)) from error
        except _READER_ERRORS as error:
            raise MediaError(
                "media_unreadable", f"damaged {looks_like(head)}: {error or type(error).__name__}"
            ) from error


@contextmanager
def _bytes_of(source: Path | bytes) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    require_regular_file(source)
    try:
        stream = source.open("rb")
    except OSError as error:
        raise MediaError("media_unreadable", f"{source.name} can't be opened: {error.strerror}") from error
    with stream:
        yield stream


def _reader_for(head: bytes) -> tuple[Reader, str]:
    for signature, reader, mime in _READERS:
        if signature.match(head):
            return reader, mime
    if is_avif(head):
        return AvifImagePlugin.AvifImageFile, "image/avif"
    raise MediaError("media_unreadable", f"not an image that can be read; it looks like: {looks_like(head)}")


def require_size(size: tuple[int, int], limits: ImageLimits) -> None:
    """Refuse a picture that is too large, too small or too narrow.

    Raises:
        MediaError: `media_too_large` or `media_too_small`.
    """
    width, height = size
    if width * height > limits.max_pixels:
        raise MediaError("media_too_large", f"{width}x{height} pixels; the limit is {limits.max_pixels} in all")
    if min(width, height) < max(limits.min_side, 1):
        raise MediaError("media_too_small", f"{width}x{height} pixels; each side needs {limits.min_side}")
    if max(width, height) > limits.max_ratio * min(width, height):
        raise MediaError("media_too_small", f"{width}x{height} pixels; sides over {limits.max_ratio:g}:1 are refused")


class _StrictLoading:
    """Keeps Pillow from accepting cut files while anyone is inside, also when other code has asked it to.

    The switch is global to the process: the first thread in turns it off, the last one out puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES
            self._inside += 1
            ImageFile.LOAD_TRUNCATED_IMAGES = False

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_STRICT_LOADING = _StrictLoading()


def _header_orientation(image: ImageFile.ImageFile) -> int:
    stream = image.fp
    if not isinstance(image, PngImagePlugin.PngImageFile) or "exif" in image.info or stream is None:
        return _orientation(image.getexif)
    late = _late_png_exif(stream)
    if late is not None:
        image.info["exif"] = late
    # Not that of the PNG: it would decode the whole picture to learn whether an eXIf chunk follows the pixels.
    return _orientation(lambda: Image.Image.getexif(image))


def _late_png_exif(stream: IO[bytes]) -> bytes | None:
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            return b"Exif\0\0" + stream.read(length)
        stream.seek(length + 4, io.SEEK_CUR)
    return None


def _orientation(read_exif: Callable[[], Image.Exif]) -> int:
    try:
        orientation = read_exif().get(ExifTag.Orientation, 1)
    except _READER_ERRORS:
        # Broken EXIF beside sound pixels is common; every viewer shows such a picture as stored.
        return 1
    return orientation if orientation in _TURNS else 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_sixteen_bits(image)
    if image.mode == "F":
        return _from_floats(image)
    if image.has_transparency_data:
        return flatten(image)
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values: NDArray[Any] = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise MediaError("media_unreadable", "whole numbers outside 0..65535 are not a picture's brightness")
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _from_floats(image: Image.Image) -> Image.Image:
    values: NDArray[Any] = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):
        raise MediaError("media_unreadable", f"floating-point pixels from {low:g} to {high:g}; 0..1 or 0..255 expected")
    scale = 255 if high <= 1 else 1
    return Image.fromarray(np.rint(values * scale).astype(np.uint8)).convert("RGB")
