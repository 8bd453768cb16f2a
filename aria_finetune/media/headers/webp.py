"""Size of a WebP that is one picture and nothing else, without Pillow. See `reading`."""

from __future__ import annotations

import struct

from aria_finetune.media.headers.stored import Header, Stored, require

_MOST_PIXELS = 64_000_000
"""Pillow draws, and so has a limit of its own for the pixels in all, which is higher."""

_HEAD = struct.Struct("<4sI4s4sI10s")


def read_webp(stored: Stored) -> Header:
    """Read a file with a single chunk, of either kind of compression, that fills it to its end.

    Raises:
        Unusual: it is for Pillow to say.
    """
    head = stored.read(0, _HEAD.size)
    require(len(head) == _HEAD.size)
    _, file_bytes, _, kind, chunk_bytes, start = _HEAD.unpack(head)
    require(file_bytes + 8 == stored.size and chunk_bytes + chunk_bytes % 2 + 12 == file_bytes)
    require(kind in {b"VP8 ", b"VP8L"})
    header = _lossy(start, chunk_bytes) if kind == b"VP8 " else _lossless(start)
    require(header.width * header.height <= _MOST_PIXELS)
    return header


def _lossy(start: bytes, count: int) -> Header:
    """RFC 6386, section 9.1: a key frame that is shown, its first partition shorter than the chunk."""
    bits = int.from_bytes(start[:3], "little")
    require(not bits & 1 and bits >> 1 & 7 <= 3 and bits >> 4 & 1 and bits >> 5 < count)
    require(start[3:6] == b"\x9d\x01\x2a")
    return Header(int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF)


def _lossless(start: bytes) -> Header:
    """RFC 9649, section 3.4: a signature, 14 bits for each side, one for transparency, and version 0."""
    bits = int.from_bytes(start[1:5], "little")
    require(start[0] == 0x2F and not bits >> 29)
    return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
