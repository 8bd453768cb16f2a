"""A JSON list of records in one file, however large: read in parts, and never held as a whole.

Where a list can be cut is guessed from its first two records: the bytes with which a record ends and the next
begins. What is guessed is proven when it is read: a part is taken only if it parses as whole values, as many as the
guess says, for parts that do so can't have been cut in the middle of anything. Otherwise the list is read from its
beginning, value by value.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from aria_finetune.data_formats.building import strict_json
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.reading import fast_json
from aria_finetune.data_formats.reading.contents import LONGEST_LINE, Contents, decoded, open_utf8, read_some
from aria_finetune.data_formats.reading.extents import WHOLE, Extent, Tally
from aria_finetune.data_formats.reading.json_bytes import end_of_value, skip_space

BLOCK_BYTES = 1 << 20
_SEAM = re.compile(rb"\}\s*,\s*\{")
_FIRST_KEY = re.compile(rb'\{\s*"[^"\\]*"\s*:')


class WrongGuess(Exception):
    """The list was not to be cut where it was."""


def cut(file: Path, contents: Contents, size: int, tail: int = 1) -> list[Extent]:
    """Cut a list between records into extents of about `size` bytes; one piece where that can't be guessed.

    The guess takes in the last `tail` bytes of a record: the more, the fewer places look like the end of one.
    """
    end = os.path.getsize(file)  # noqa: PTH202
    if not contents.seekable or end <= size:
        return [WHOLE]
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        guess = _guess(data, contents, tail)
        if guess is None:
            return [WHOLE]
        start, mark = guess
        last = _end_of_text(data)
        if data[last - 1 : last] != b"]":
            return [WHOLE]
        return _cut_at(data, start, last - 1, mark, size)


def _end_of_text(data: mmap.mmap) -> int:
    """Where the white space at the end begins."""
    last, block = len(data), b""
    while last and not block:
        block = data[max(0, last - BLOCK_BYTES) : last].rstrip()
        last = max(0, last - BLOCK_BYTES) + len(block)
    return last


def _cut_at(data: mmap.mmap, start: int, last: int, mark: bytes, size: int) -> list[Extent]:
    extents = []
    end, begin = _seam(mark)
    while start + size < last:
        place = data.find(mark, start + size)
        if place < 0 or place >= last:
            break
        extents.append(Extent(start, place + end, mark))
        start = place + begin
    return [*extents, Extent(start, last, mark)]


def _seam(mark: bytes) -> tuple[int, int]:
    """Where in the mark one record has ended, and where the next begins."""
    seam = _SEAM.search(mark)
    if seam is None:
        raise ValueError("no mark")
    return seam.start() + 1, seam.end() - 1


def _guess(data: mmap.mmap, contents: Contents, tail: int) -> tuple[int, bytes] | None:
    """Where the first record begins, and the bytes from the end of it to the first key of the second."""
    size, end = BLOCK_BYTES, None
    while end is None:
        head = data[contents.mark : contents.mark + size]
        start = skip_space(head, skip_space(head, 0) + 1)
        end = end_of_value(head, start)
        if end is None and (contents.mark + size >= len(data) or size > LONGEST_LINE):
            return None
        size *= 2
    if head[start : start + 1] != b"{":
        return None
    second = skip_space(head, end)
    second = skip_space(head, second + 1) if head[second : second + 1] == b"," else -1
    key = _FIRST_KEY.match(head, second) if second > 0 else None
    return None if key is None else (contents.mark + start, head[end - tail : key.end()])


def count(file: Path, contents: Contents, extent: Extent) -> Tally:  # noqa: ARG001
    """Records and line feeds in an extent, if the guess is right."""
    if not extent.mark:
        return Tally()
    records, lines = 0, 0
    for text in _texts(file, extent):
        records += text.count(extent.mark) + 1
        lines += text.count(b"\n")
    return Tally(records, lines)


def read(file: Path, contents: Contents, extent: Extent, before: Tally) -> Iterator[object]:  # noqa: ARG001
    """The values of an extent in order, and a `RecordError` for each that the strict rules refuse.

    Raises:
        WrongGuess: the list was cut in the middle of a value.
        FormatError: it is no list of values; it names line and column.
    """
    if not extent.mark:
        with open_utf8(file, contents) as stream:
            yield from _ElementReader(stream, contents).values()
        return
    for text in _texts(file, extent):
        expected = text.count(extent.mark) + 1
        values = fast_json.parse_elements(text)
        if values is None:
            values = _strictly(text)
        if len(values) != expected:
            raise WrongGuess
        yield from values


def _strictly(text: bytes) -> list[object]:
    try:
        return list(_ElementReader(io.BytesIO(b"[%b]" % text), Contents("json_array")).values())
    except FormatError as error:
        raise WrongGuess from error


def _texts(file: Path, extent: Extent) -> Iterator[bytes]:
    """The extent in pieces that begin and end where the guess says that records do."""
    stop = extent.stop or 0
    seam_end, seam_begin = _seam(extent.mark)
    with file.open("rb") as stream:
        stream.seek(extent.start)
        held, left = b"", stop - extent.start
        while left:
            block = stream.read(min(BLOCK_BYTES, left))
            if not block:
                raise WrongGuess
            left -= len(block)
            held += block
            end = held.rfind(extent.mark)
            if left and end >= 0:
                yield held[: end + seam_end]
                held = held[end + seam_begin :]
        yield held


class _ElementReader:
    """Reads a list from its beginning, value by value, holding little more than one of them."""

    def __init__(self, stream: BinaryIO, contents: Contents) -> None:
        self._stream = stream
        self._data = b""
        self._place = 0
        self._before = 0
        self._lines = 0
        self._column = 0
        self._mark = contents.mark

    def values(self) -> Iterator[object]:
        """The values; a `RecordError` where one breaks the strict rules only."""
        self._skip_space()
        self._place += 1
        self._skip_space()
        if self._next() == b"]":
            raise FormatError("there is no record in it", fix="check that it is the file you mean; its list is empty")
        while True:
            yield self._value()
            self._skip_space()
            if self._next() == b"]":
                break
            if self._next() != b",":
                raise self._broken("a comma or the end of the list is missing")
            self._place += 1
            self._skip_space()
            if self._next() == b"]":
                raise self._broken("a comma with no record behind it")
        self._place += 1
        self._skip_space()
        if self._next():
            raise self._broken("there is more behind the end of the list")

    def _value(self) -> object:
        end = end_of_value(self._data, self._place)
        while end is None and self._more():
            end = end_of_value(self._data, self._place)
        end = len(self._data) if end is None else end
        text = self._text(end)
        try:
            value, length = strict_json.decode(text, 0, whole=False)
        except json.JSONDecodeError as error:
            raise self._broken(error.msg, len(text[: error.pos].encode())) from error
        except strict_json.StrictJSONError as error:
            value, length = RecordError("bad_json", error.message), self._length(text)
        self._place += len(text[:length].encode()) if length < len(text) else end - self._place
        return value

    def _length(self, text: str) -> int:
        try:
            return strict_json.end_of_value(text, 0)
        except json.JSONDecodeError as error:
            raise self._broken(error.msg, len(text[: error.pos].encode())) from error
        except strict_json.StrictJSONError as error:
            if end_of_value(self._data, self._place) is None:
                raise self._broken(error.message) from error
            return len(text)

    def _text(self, end: int) -> str:
        return decoded(self._data[self._place : end], "utf-8", self._mark + self._before + self._place)

    def _next(self) -> bytes:
        return self._data[self._place : self._place + 1]

    def _skip_space(self) -> None:
        while True:
            self._place = skip_space(self._data, self._place)
            if self._place < len(self._data) or not self._more():
                return

    def _more(self) -> bool:
        """Read on, forgetting what lies behind; twice as much for a value that has not ended."""
        if len(self._data) - self._place > LONGEST_LINE:
            raise FormatError(f"a record is longer than {LONGEST_LINE >> 20} MiB", fix="write its media into files")
        block = read_some(self._stream, max(BLOCK_BYTES, len(self._data) - self._place))
        self._forget()
        self._data += block
        return bool(block)

    def _forget(self) -> None:
        passed = self._data[: self._place]
        lines = passed.count(b"\n")
        self._column = (
            len(_text_before(passed.rpartition(b"\n")[2])) if lines else self._column + len(_text_before(passed))
        )
        self._lines += lines
        self._before += self._place
        self._data, self._place = self._data[self._place :], 0

    def _broken(self, problem: str, offset: int = 0) -> FormatError:
        passed = self._data[: self._place + offset]
        lines = passed.count(b"\n")
        column = len(_text_before(passed.rpartition(b"\n")[2])) + (0 if lines else self._column) + 1
        place = f"line {self._lines + lines + 1}, column {column}"
        return FormatError(f"broken JSON array at {place}: {problem}", fix="mend the file there")


def _text_before(data: bytes) -> str:
    return data.decode("utf-8", "replace")
