"""Bytes of an image that lie in memory or in an open file, and what a reader of headers makes of them."""

from __future__ import annotations

import os
from typing import NamedTuple


class Unusual(Exception):
    """It depends on the reader what comes of the file, and so it is for Pillow to say."""


def require(usual: object) -> None:
    """Leave a file to Pillow unless it is as usual.

    Raises:
        Unusual: it is not.
    """
    if not usual:
        raise Unusual


class Header(NamedTuple):
    """Width and height in pixels as stored, EXIF orientation (0 or 1 where nothing is turned), number of frames."""

    width: int
    height: int
    orientation: int = 0
    frames: int = 1


class Stored:
    """The `size` bytes of an image: the `head` of them, or all; the others are read from the descriptor `file`."""

    __slots__ = ("_file", "_head", "size")

    def __init__(self, head: bytes, size: int, file: int | None) -> None:
        self._head = head
        self._file = file
        self.size = size

    def read(self, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start` on; fewer at the end.

        Raises:
            OSError: the file can't be read.
        """
        end = start + count
        if end <= len(self._head) or self._file is None:
            return self._head[start:end]
        return os.pread(self._file, count, start)
