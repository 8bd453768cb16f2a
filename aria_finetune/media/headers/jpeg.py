"""Size and orientation of a JPEG, without Pillow, where nothing about it is unusual. See `reading`."""

from __future__ import annotations

from aria_finetune.media.headers.exif import read_orientation
from aria_finetune.media.headers.stored import Header, Stored, Unusual, require

_START_OF_SCAN, _QUANTISATION = 0xDA, 0xDB
_APP0, _APP1, _APP2, _APP13, _APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
# Huffman tables, restart interval, comment, and what belongs to applications that Pillow does not know.
_IGNORED = frozenset({0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF})
_COMPONENTS = (1, 3, 4)
_EXIF = b"Exif\0\0"
_MOST_SEGMENTS = 256


def read_jpeg(stored: Stored) -> Header:
    """Go from segment to segment up to the first scan.

    Raises:
        Unusual: it is for Pillow to say.
    """
    size: tuple[int, int] | None = None
    orientation: int | None = None
    at = 2
    for _ in range(_MOST_SEGMENTS):
        head = stored.read(at, 4)
        require(len(head) == 4 and head[0] == 0xFF)
        marker, count = head[1], (head[2] << 8 | head[3]) - 2
        at += 4
        require(count >= 0 and at + count <= stored.size)
        if marker in _FRAMES:
            require(size is None)
            size = _size(stored.read(at, count))
        elif marker == _START_OF_SCAN and size is not None:
            return Header(*size, orientation or 0, 1)
        elif marker == _APP1 and stored.read(at, 6) == _EXIF:
            require(orientation is None)
            orientation = read_orientation(stored.read(at + 6, count - 6))
        elif marker not in _IGNORED:
            require(_is_harmless(marker, stored, at, count))
        at += count
    raise Unusual


def _size(frame: bytes) -> tuple[int, int]:
    require(len(frame) >= 6 and frame[0] == 8 and frame[5] in _COMPONENTS and len(frame) == 6 + 3 * frame[5])
    height, width = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]
    return width, height


def _is_harmless(marker: int, stored: Stored, at: int, count: int) -> bool:
    """Whether Pillow passes over a segment, and learns nothing from it that would matter here."""
    if marker == _QUANTISATION:
        return _are_tables(stored.read(at, count))
    if marker == _APP0:
        return count >= 7 or stored.read(at, 4) != b"JFIF"
    if marker == _APP1:
        return b"tiff:Orientation" not in stored.read(at, count)
    if marker == _APP2:
        # Behind "MPF" further pictures are listed.
        return stored.read(at, 4) != b"MPF\0" and (count >= 14 or stored.read(at, 11) != b"ICC_PROFILE")
    if marker == _APP13:
        return stored.read(at + count - 6, 4) != b"8BIM"  # a block without a length, over which Pillow stumbles
    return marker == _APP14 and (count >= 7 or stored.read(at, 5) != b"Adobe")


def _are_tables(segment: bytes) -> bool:
    """Whether a segment is made of whole quantisation tables of 8 bits."""
    return len(segment) % 65 == 0 and max(segment[::65], default=0) < 16
