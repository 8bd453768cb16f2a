"""The orientation in a block of EXIF data, without Pillow. Knows nothing of the file that holds the block."""

from __future__ import annotations

import struct

from aria_finetune.media.headers.stored import Unusual, require

_ORIENTATION, _X_RESOLUTION, _RESOLUTION_UNIT = 0x0112, 0x011A, 0x0128
_SHORT, _RATIONAL = 3, 5
# Type and number of values of entries that Pillow reads when it opens an image; of others it may take offence.
_EXPECTED = {_ORIENTATION: (_SHORT, 1), _X_RESOLUTION: (_RATIONAL, 1), _RESOLUTION_UNIT: (_SHORT, 1)}
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_ENTRY_BYTES = 12

# By the first bytes, which say the order of the others: an offset, a short number, and an entry.
_LAYOUTS = {
    b"II*\0": (struct.Struct("<I"), struct.Struct("<H"), struct.Struct("<HHI4s")),
    b"MM\0*": (struct.Struct(">I"), struct.Struct(">H"), struct.Struct(">HHI4s")),
}


def read_orientation(block: bytes) -> int:
    """The orientation in a TIFF structure: 1 to 8, or 0 where it has none.

    Raises:
        Unusual: it has more than one, or is damaged.
    """
    layout = _LAYOUTS.get(block[:4])
    if layout is None:
        raise Unusual
    long, short, entry = layout
    require(len(block) >= 8)
    (start,) = long.unpack_from(block, 4)
    require(8 <= start <= len(block) - 2)
    (count,) = short.unpack_from(block, start)
    end = start + 2 + count * _ENTRY_BYTES
    require(end + 4 <= len(block))
    room, orientation = len(block), 0
    for tag, kind, number, value in entry.iter_unpack(block[start + 2 : end]):
        size = number * _BYTES_OF_TYPE.get(kind, 0)
        if size > 4:
            room -= size
            require(room >= 0 and long.unpack(value)[0] + size <= len(block))
        if tag in _EXPECTED:
            require(_EXPECTED[tag] == (kind, number))
            if tag == _ORIENTATION:
                require(orientation == 0)
                (orientation,) = short.unpack_from(value)
                require(1 <= orientation <= 8)
    return orientation
