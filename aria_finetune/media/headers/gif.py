"""Size and number of frames of a GIF, without Pillow, where nothing about it is unusual. See `reading`."""

from __future__ import annotations

from aria_finetune.media.headers.stored import Header, Stored, Unusual, require

MOST_BYTES = 2**20
"""Longer files are left to Pillow: every block of 255 bytes is a step."""

_MOST_PIXELS = 64_000_000
"""Pillow may draw when it counts frames, and so has a limit of its own for their pixels, which is higher."""

_EXTENSION, _IMAGE, _END = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL, _COMMENT, _APPLICATION = 0xF9, 0xFE, 0xFF


def read_gif(stored: Stored) -> Header:
    """Go from block to block up to the end.

    Raises:
        Unusual: it is for Pillow to say.
    """
    require(stored.size <= MOST_BYTES)
    try:
        return _read(stored.read(0, stored.size))
    except IndexError as error:
        raise Unusual from error


def _read(data: bytes) -> Header:
    width, height = data[6] | data[7] << 8, data[8] | data[9] << 8
    require(width * height <= _MOST_PIXELS)
    at, frames = 13 + _palette_bytes(data[10]), 0
    while data[at] != _END:
        if data[at] == _EXTENSION:
            start = at + 2
            require(_is_plain(data, start))
        else:
            require(data[at] == _IMAGE)
            frames += 1
            left, top, wide, high = (data[at + place] | data[at + place + 1] << 8 for place in (1, 3, 5, 7))
            require(wide and high and left + wide <= width and top + high <= height)
            start = at + 10 + _palette_bytes(data[at + 9]) + 1
        at = _behind_blocks(data, start)
    require(frames)
    return Header(width, height, frames=frames)


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _behind_blocks(data: bytes, at: int) -> int:
    while count := data[at]:
        at += count + 1
    return at + 1


def _is_plain(data: bytes, at: int) -> bool:
    """Whether Pillow reads the blocks of an extension as they are meant."""
    kind, first = data[at - 1], data[at]
    if kind == _GRAPHIC_CONTROL:
        return first == 4
    if kind == _APPLICATION and data[at + 1 : at + 12] == b"NETSCAPE2.0":
        return first == 11 and data[at + 12] > 0
    return first > 0 or kind == _COMMENT
