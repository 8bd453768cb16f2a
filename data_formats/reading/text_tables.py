"""Text that is not JSON: plain lines, or a table with a header, whose cells stay the texts they are."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.reading.contents import LONGEST_LINE, Contents, decoded, open_utf8
from aria_finetune.data_formats.reading.json_lines import lines_of

DELIMITERS = "\t,;|"
_SNIFFED_ROWS = 50


def read_lines(file: Path, contents: Contents) -> Iterator[str]:
    """The lines of a text without their ends, those of nothing but white space left out.

    Raises:
        FormatError: a byte is not of the encoding.
    """
    with open_utf8(file, contents) as stream:
        yield from (line.rstrip("\r") for line in _texts(stream, contents) if line.strip())


def read_rows(file: Path, contents: Contents) -> Iterator[object]:
    """The rows of a table by the names in its first row; a `RecordError` for one that is longer or shorter.

    Raises:
        FormatError: there is no delimiter that all rows have, no row, the header has a name twice, or as `read_lines`.
    """
    delimiter = find_delimiter(file, contents)
    with open_utf8(file, contents) as stream:
        rows = _rows(stream, contents, delimiter, strict=True)
        header = next(rows)
        _check_header(header)
        empty = True
        for row in rows:
            empty = False
            yield _record(header, row)
    if empty:
        raise FormatError("there is no record in it", fix="check that it is the file you mean; its table has no row")


def find_delimiter(file: Path, contents: Contents) -> str:
    """The delimiter with which the first rows have equally many cells, more than one.

    Raises:
        FormatError: there is none.
    """
    broken: FormatError | None = None
    for delimiter in DELIMITERS:
        with open_utf8(file, contents) as stream:
            rows = islice(_rows(stream, contents, delimiter, strict=False), _SNIFFED_ROWS)
            try:
                lengths = [len(row) for row in rows]
            except _BrokenTable as error:
                broken = error
                continue
        # Bad rows are told one by one later, so that most must agree and not all.
        if lengths and lengths[0] > 1 and lengths.count(lengths[0]) * 2 > len(lengths):
            return delimiter
    raise broken or FormatError(
        "it is neither JSON nor a table with a header",
        fix="give JSON Lines, a JSON list, or a table whose cells are separated by commas or tabs",
    )


class _BrokenTable(FormatError):
    """The rows can't be told apart, with this delimiter at least."""


def _rows(stream: BinaryIO, contents: Contents, delimiter: str, *, strict: bool) -> Iterator[list[str]]:
    """The rows that hold something, one of them in memory at a time."""
    held = 0

    def lines() -> Iterator[str]:
        nonlocal held
        for line in _texts(stream, contents):
            held += len(line)
            if held > LONGEST_LINE:
                message = f"a row is longer than {LONGEST_LINE >> 20} MiB"
                raise _BrokenTable(message, fix="write its media into files, or close the quote that is left open")
            yield line + "\n"

    # A picture may be written into a cell.
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(lines(), delimiter=delimiter, strict=strict)
    try:
        for row in rows:
            held = 0
            if row:
                yield row
    except csv.Error as error:
        message = f"broken table at line {rows.line_num}: {error}"
        raise _BrokenTable(message, fix="mend the file there; quotes within quoted cells are doubled") from error


def _check_header(header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise FormatError(f"the header has {twice[0]!r:.60} more than once", fix="give every column its own name")


def _record(header: list[str], row: list[str]) -> dict[str, str] | RecordError:
    if len(row) == len(header):
        return dict(zip(header, row, strict=True))
    return RecordError("bad_schema", f"{len(row)} cells under a header of {len(header)}")


def _texts(stream: BinaryIO, contents: Contents) -> Iterator[str]:
    offset = contents.mark
    for lines in lines_of(stream):
        for line in lines:
            yield decoded(line, "utf-8", offset)
            offset += len(line) + 1
