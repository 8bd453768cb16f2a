"""JSON Lines: one value a line, blank lines passed over, a bad line costs one record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.reading import fast_json
from aria_finetune.data_formats.reading.contents import LONGEST_LINE, Contents, decoded, open_utf8, read_some
from aria_finetune.data_formats.reading.extents import WHOLE, Extent, Tally

BLOCK_BYTES = 1 << 17
_SPACE = b" \t\r"


def cut(file: Path, contents: Contents, size: int) -> list[Extent]:
    """Cut a file between lines into extents of about `size` bytes; one that can't be read from the middle stays whole."""
    end = os.path.getsize(file)  # noqa: PTH202 (a path that is no Path method's business: one stat)
    if not contents.seekable or end - contents.mark <= size:
        return [Extent(contents.mark, None)] if contents.seekable else [WHOLE]
    starts = [contents.mark]
    with file.open("rb") as stream:
        while starts[-1] + size < end:
            stream.seek(starts[-1] + size)
            stream.readline()
            starts.append(stream.tell())
    return [Extent(start, stop) for start, stop in zip(starts, [*starts[1:], end], strict=True) if start < stop]


def count(file: Path, contents: Contents, extent: Extent) -> Tally:
    """Records and lines in an extent."""
    tally = Tally()
    for lines in _blocks(file, contents, extent):
        tally += Tally(sum(1 for line in lines if line.strip(_SPACE)), len(lines))
    return tally


def read(file: Path, contents: Contents, extent: Extent, before: Tally) -> Iterator[object]:
    """The values of an extent in order, and a `RecordError` for each line that is none; `before` lies before it.

    Raises:
        FormatError: a byte is not of the encoding, or a line is longer than `LONGEST_LINE`.
    """
    number = before.lines
    for lines in _blocks(file, contents, extent):
        values = fast_json.parse_lines([line for line in lines if line.strip(_SPACE)])
        if values is not None:
            yield from values
        else:
            yield from _one_by_one(file, contents, lines, number)
        number += len(lines)


def _one_by_one(file: Path, contents: Contents, lines: list[bytes], before: int) -> Iterator[object]:
    for number, line in enumerate(lines, before + 1):
        if not line.strip(_SPACE):
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise _bad_byte(file, contents) from None
        value = fast_json.parse_one(text)
        if isinstance(value, RecordError):
            joined = ", " if value.detail.startswith("column") else ": "
            value = RecordError(value.reason, f"line {number}{joined}{value.detail}")
        yield value


def _bad_byte(file: Path, contents: Contents) -> FormatError:
    """The error that names the first byte that is not UTF-8; the file is read again up to it."""
    offset = contents.mark
    with open_utf8(file, contents) as stream:
        for lines in lines_of(stream):
            for line in lines:
                try:
                    decoded(line, "utf-8", offset)
                except FormatError as error:
                    return error
                offset += len(line) + 1
    return FormatError("it changed while it was read", fix="start again")


def _blocks(file: Path, contents: Contents, extent: Extent) -> Iterator[list[bytes]]:
    """Lines without their line feeds, as many at a time as fill a block."""
    with open_utf8(file, contents) as stream:
        if contents.seekable:
            stream.seek(max(extent.start, contents.mark))
        left = None if extent.stop is None else extent.stop - extent.start
        yield from lines_of(stream, left)


def lines_of(stream: BinaryIO, left: int | None = None) -> Iterator[list[bytes]]:
    """The lines of the next `left` bytes of a stream (None: of all of it), a block at a time.

    Raises:
        FormatError: a line is longer than `LONGEST_LINE`, or compressed data are damaged.
    """
    pieces: list[bytes] = []
    held = 0
    while block := read_some(stream, BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
        left = None if left is None else left - len(block)
        end = block.rfind(b"\n") + 1
        if not end:
            pieces.append(block)
            held += len(block)
            if held > LONGEST_LINE:
                raise FormatError(f"a line is longer than {LONGEST_LINE >> 20} MiB", fix="write its media into files")
            continue
        yield (b"".join(pieces) + block[: end - 1]).split(b"\n")
        pieces, held = [block[end:]], len(block) - end
    rest = b"".join(pieces)
    if rest:
        yield [rest]
