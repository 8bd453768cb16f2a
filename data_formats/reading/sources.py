"""From a file or folder to parsed records, one by one: JSON Lines, a JSON array, or a single JSON object.

What a file holds is told by its bytes, not its name. Nothing here knows a format; a record is any JSON value.
JSON Lines in UTF-8 are read line by line; arrays and UTF-16 or UTF-32 files are held in memory as text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from aria_finetune.data_formats.building import strict_json
from aria_finetune.data_formats.errors import FormatError, RecordError

# UTF-32 little endian begins with the mark of UTF-16, so it is tried first.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_OTHER_CONTENTS = (
    (b"\x1f\x8b", "compressed with gzip", "decompress it first"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"PAR1", "a Parquet file", "write it out as JSON Lines first"),
    (b"version https://git-lfs", "a git-LFS pointer, not the file", "run `git lfs pull`"),
)
_WRAPPER_KEYS = ("data", "records", "rows", "examples", "samples", "items")
_JSON_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A record and its place, counted from 0 over records and not over lines, or why it can't be parsed."""

    ordinal: int
    record: object | RecordError


def locate(path: Path) -> Path:
    """The file to read for a source: itself, or for a folder its `train.jsonl` or only `.json` / `.jsonl` file.

    Raises:
        FormatError: nothing there, or several files to choose from.
    """
    if not path.is_dir():
        if not path.exists():
            raise FormatError("there is no such file or folder", where=str(path), fix="check the path")
        return path
    if (path / "train.jsonl").is_file():
        return path / "train.jsonl"
    files = sorted(entry for entry in path.iterdir() if entry.suffix in {".json", ".jsonl"} and entry.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise FormatError(f"the folder holds several data files: {names}", where=str(path), fix="name one of them")
    there = ", ".join(sorted(entry.name for entry in islice(path.iterdir(), 10))) or "nothing"
    fix = "name the data file itself"
    raise FormatError(f"the folder holds no .json or .jsonl file; there is: {there}", where=str(path), fix=fix)


def read_source(path: Path) -> Iterator[SourceItem]:
    """The records of a file or folder in order; blank lines are skipped, a bad line is one bad record.

    A file that begins with `[` is a JSON array, unless its first line is a whole list and another line follows. A
    single object is one record, unless it is only a wrapper: a list under `data` or the like, and plain values.

    Raises:
        FormatError: no such file, bytes that are not text, a broken array, or no record at all.
    """
    file = locate(path)
    try:
        yield from _records(file)
    except FormatError as error:
        raise FormatError(error.message, where=error.where or str(file), fix=error.fix) from error


def _records(file: Path) -> Iterator[SourceItem]:
    lines = ((number, line) for number, line in enumerate(_lines(file), 1) if line.strip(_JSON_SPACE))
    head = list(islice(lines, 2))
    if not head:
        raise FormatError("there is no record in it", fix="check that it is the file you mean; it is empty")
    if _is_one_document(head):
        return _records_of_document(_text(file))
    return _records_of_lines(chain(head, lines))


def _is_one_document(head: list[tuple[int, str]]) -> bool:
    first = head[0][1].strip(_JSON_SPACE)
    if first[0] not in "[{":
        return False
    if len(head) == 1:
        return True
    if _is_value(first):
        return False
    # A broken first line of JSON Lines is told from the head of an indented object by what follows it.
    return first[0] == "[" or not head[1][1].lstrip(_JSON_SPACE).startswith("{")


def _is_value(text: str) -> bool:
    try:
        return strict_json.end_of_value(text, 0) == len(text)
    except (json.JSONDecodeError, strict_json.StrictJSONError):
        return False


def _records_of_lines(lines: Iterable[tuple[int, str]]) -> Iterator[SourceItem]:
    for ordinal, (number, line) in enumerate(lines):
        try:
            yield SourceItem(ordinal, strict_json.loads(line))
        except json.JSONDecodeError as error:
            yield SourceItem(ordinal, RecordError("bad_json", f"line {number}, column {error.colno}: {error.msg}"))
        except strict_json.StrictJSONError as error:
            yield SourceItem(ordinal, RecordError("bad_json", f"line {number}: {error.message}"))


def _records_of_document(text: str) -> Iterator[SourceItem]:
    start = _skip_space(text, 0)
    if text[start] == "[":
        return _records_of_array(text, start)
    return _records_of_object(text)


def _records_of_object(text: str) -> Iterator[SourceItem]:
    try:
        value = strict_json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        yield SourceItem(0, RecordError("bad_json", f"{place}: {error.msg}"))
        return
    except strict_json.StrictJSONError as error:
        yield SourceItem(0, RecordError("bad_json", error.message))
        return
    for ordinal, record in enumerate(_unwrapped(value)):
        yield SourceItem(ordinal, record)


def _unwrapped(value: object) -> list[object]:
    inner = [item for item in value.values() if isinstance(item, dict | list)] if isinstance(value, dict) else []
    for key in _WRAPPER_KEYS:
        if isinstance(value, dict) and len(inner) == 1 and isinstance(value.get(key), list):
            return list(value[key])
    return [value]


def _records_of_array(text: str, start: int) -> Iterator[SourceItem]:
    place, ordinal = _skip_space(text, start + 1), 0
    while not text.startswith("]", place):
        item, place = _array_item(text, place, ordinal)
        yield item
        ordinal += 1
        place = _skip_space(text, place)
        if text.startswith(",", place):
            place = _skip_space(text, place + 1)
            if text.startswith("]", place):
                raise _broken(text, place, "a comma with no record behind it")
        elif not text.startswith("]", place):
            raise _broken(text, place, "a comma or the end of the list is missing")
    if ordinal == 0:
        raise FormatError("there is no record in it", fix="check that it is the file you mean; its list is empty")
    if _skip_space(text, place + 1) != len(text):
        raise _broken(text, _skip_space(text, place + 1), "there is more behind the end of the list")


def _array_item(text: str, start: int, ordinal: int) -> tuple[SourceItem, int]:
    try:
        record, end = strict_json.decode(text, start, whole=False)
        return SourceItem(ordinal, record), end
    except json.JSONDecodeError as error:
        raise _broken(text, error.pos, error.msg) from error
    except strict_json.StrictJSONError as error:
        problem = error.message
    try:
        return SourceItem(ordinal, RecordError("bad_json", problem)), strict_json.end_of_value(text, start)
    except json.JSONDecodeError as error:
        raise _broken(text, error.pos, error.msg) from error
    except strict_json.StrictJSONError as error:
        raise _broken(text, start, error.message) from error


def _broken(text: str, place: int, problem: str) -> FormatError:
    line = text.count("\n", 0, place) + 1
    column = place - (text.rfind("\n", 0, place) + 1) + 1
    return FormatError(f"broken JSON array at line {line}, column {column}: {problem}", fix="mend the file there")


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in _JSON_SPACE:
        place += 1
    return place


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file without their ends; a line ends at a line feed only."""
    encoding, mark = _encoding(file)
    if encoding != "utf-8":
        yield from _text(file).split("\n")
        return
    with file.open("rb") as stream:
        offset = stream.seek(len(mark))
        for line in stream:
            yield _decoded(line, encoding, offset)
            offset += len(line)


def _text(file: Path) -> str:
    encoding, mark = _encoding(file)
    return _decoded(file.read_bytes()[len(mark) :], encoding, len(mark))


def _encoding(file: Path) -> tuple[str, bytes]:
    with file.open("rb") as stream:
        head = stream.read(32)
    for magic, what, fix in _OTHER_CONTENTS:
        if head.startswith(magic):
            raise FormatError(f"it is {what}", fix=fix)
    return next(((name, mark) for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), ("utf-8", b""))


def _decoded(data: bytes, encoding: str, offset: int) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        message = f"byte {offset + error.start} is not {encoding.upper()}: {error.reason}"
        raise FormatError(message, fix="write the file out as UTF-8") from error
