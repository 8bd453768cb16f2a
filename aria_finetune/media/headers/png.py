"""Size and orientation of a PNG, without Pillow, where nothing about it is unusual. See `reading`."""

from __future__ import annotations

import struct
import zlib

from aria_finetune.media.headers.exif import read_orientation
from aria_finetune.media.headers.stored import Header, Stored, Unusual, require

_DEPTHS_OF_COLOUR = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_LEAST_BYTES = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"PLTE": 0, b"bKGD": 0, b"sBIT": 0, b"tIME": 0}
_LEAST_TRANSPARENCY = {0: 2, 2: 6}
_XMP = b"XML:com.adobe.xmp"
_KEYS_WITH_ORIENTATION = frozenset({b"exif", b"xmp", b"Raw profile type exif", _XMP})
_MOST_CHUNKS = 4096
_MOST_CHUNK_BYTES = 65_536
_MOST_UNPACKED_BYTES = 1_000_000
_LONGEST_RATIO = 1032
"""Compressed data never come out longer than so many times their own length."""

_CHUNK = struct.Struct(">I4s")
_FRAME = struct.Struct(">IIBBBBB")


def read_png(stored: Stored) -> Header:
    """Go from chunk to chunk, behind the pixels too: an orientation may stand there.

    Raises:
        Unusual: it is for Pillow to say.
    """
    width, height, depth, colour, _, filtering, _ = _FRAME.unpack(_checked(stored, 8, b"IHDR", _FRAME.size))
    require(depth in _DEPTHS_OF_COLOUR.get(colour, ()) and not filtering)
    orientation: int | None = None
    at, in_pixels = 33, False
    for _ in range(_MOST_CHUNKS):
        head = stored.read(at, 8)
        if len(head) < 8 and in_pixels:
            # Pillow looks for an orientation up to where the file ends or was cut.
            return Header(width, height, orientation or 0)
        require(len(head) == 8)
        length, kind = _CHUNK.unpack(head)
        in_pixels = in_pixels or kind == b"IDAT"
        if kind == b"eXIf":
            require(orientation is None)
            orientation = read_orientation(_checked(stored, at, kind, length))
        elif not in_pixels:
            require(_is_harmless(kind, _checked(stored, at, kind, length), colour))
        # What lies behind the end could still be taken for chunks.
        require(kind != b"IEND" or at + 12 == stored.size)
        at += length + 12
    raise Unusual


def _checked(stored: Stored, at: int, kind: bytes, length: int) -> bytes:
    """What is in the chunk at a place: one of that kind, whole and not long, its checksum right."""
    require(length <= _MOST_CHUNK_BYTES)
    chunk = stored.read(at, length + 12)
    require(len(chunk) == length + 12 and chunk[:8] == _CHUNK.pack(length, kind))
    require(zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"))
    return chunk[8:-4]


def _is_harmless(kind: bytes, data: bytes, colour: int) -> bool:
    """Whether Pillow passes over a chunk, and learns nothing from it that would matter here."""
    if kind in _LEAST_BYTES:
        return len(data) >= _LEAST_BYTES[kind]
    if kind == b"tRNS":
        return len(data) >= _LEAST_TRANSPARENCY.get(colour, 0)
    key, _, text = data.partition(b"\0")
    if kind == b"iTXt":
        return _is_plain_text(key, text)
    if kind in {b"zTXt", b"iCCP"}:
        return key not in _KEYS_WITH_ORIENTATION and text[:1] == b"\0" and _unpacks(text[1:])
    return kind == b"tEXt" and key not in _KEYS_WITH_ORIENTATION


def _is_plain_text(key: bytes, text: bytes) -> bool:
    """Whether an international text is not compressed, and does not say how to turn the picture."""
    if key == _XMP:
        # A flag, a method, a language, a translated key and the text.
        return text[:1] == b"\0" and text.count(b"\0") >= 4 and b"tiff:Orientation" not in text
    return text[:1] == b"\0" and key not in _KEYS_WITH_ORIENTATION


def _unpacks(data: bytes) -> bool:
    """Whether compressed data are not so many that Pillow would refuse them."""
    if len(data) * _LONGEST_RATIO <= _MOST_UNPACKED_BYTES:
        return True
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(data, _MOST_UNPACKED_BYTES)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail
