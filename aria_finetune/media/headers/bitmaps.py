"""Sizes of uncompressed BMP and PNM pictures, without Pillow, where nothing about them is unusual. See `reading`."""

from __future__ import annotations

import re
import struct

from aria_finetune.media.headers.stored import Header, Stored, Unusual, require

_DIB = struct.Struct("<IIiHHI12xI")
_DIB_BYTES = (40, 108, 124)
_DEPTHS = (8, 24, 32)

_PNM = re.compile(rb"P[56][ \t\r\n]+(\d{1,9})[ \t\r\n]+(\d{1,9})[ \t\r\n]+(\d{1,5})[ \t\r\n]")


def read_bmp(stored: Stored) -> Header:
    """Read a Windows header of version 3, 4 or 5; a height below zero is that of a picture from top to bottom.

    Raises:
        Unusual: it is for Pillow to say.
    """
    head = stored.read(14, max(_DIB_BYTES))
    require(len(head) >= _DIB.size)
    size, width, height, _, depth, compression, colours = _DIB.unpack_from(head)
    require(size in _DIB_BYTES and len(head) >= size and depth in _DEPTHS and compression == 0 and colours <= 256)
    # Pillow takes only heights whose highest byte is 255 for negative ones.
    require(height >= -(2**24))
    return Header(width, abs(height))


def read_pnm(stored: Stored) -> Header:
    """Read the header of a grey or coloured picture whose values are bytes or words.

    Raises:
        Unusual: it is for Pillow to say.
    """
    found = _PNM.match(stored.read(0, 64))
    if found is None:
        raise Unusual
    width, height, largest = (int(number) for number in found.groups())
    require(0 < largest < 65536)
    return Header(width, height)
