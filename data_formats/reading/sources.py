"""A source as its files, and each file as records: the one door to all readers.

A record is any value; nothing here knows a format. Files are told apart by their bytes, and records are read in
extents, which may be read by different processes and in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.reading import (
    archives,
    fast_json,
    json_array,
    json_lines,
    listings,
    parquet,
    text_tables,
)
from aria_finetune.data_formats.reading.contents import Contents, decoded, look, open_utf8, read_all
from aria_finetune.data_formats.reading.extents import WHOLE, Extent, Tally

Layout = Literal["lines", "rows"]

FIRST_CHOICES = ("train.jsonl", "metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names by which a folder says which of its files lists the records."""

_DATA_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar", ".tgz", ".gz")
_NO_SOURCES = frozenset({"dataset_info.json", "manifest.json", "rejects.jsonl", "report.json"})
_WRAPPER_KEYS = ("data", "records", "rows", "examples", "samples", "items")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source, its name for people and reports, and what it holds."""

    path: Path
    name: str
    contents: Contents


def locate(path: Path, encoding: str | None = None) -> list[SourceFile]:
    """The files of a source, in the order in which their records count.

    A file is its own source. Of a folder it is the first of `FIRST_CHOICES`, else its only data file; several are one
    source if they are Parquet or tar files, or if only a number tells their names apart. A folder of PDFs, or of
    folders of images, is a source itself.

    Raises:
        FormatError: nothing there, nothing that can be read, or several files to choose from.
        OSError: it can't be read.
    """
    if path.is_dir():
        listed = listings.kind_of(path) if not _data_files(path) else None
        if listed is not None:
            return [SourceFile(path, path.resolve().name, Contents(listed))]
        return [_described(file, encoding) for file in _chosen(path)]
    if not path.exists():
        raise FormatError("there is no such file or folder", where=str(path), fix="check the path")
    return [_described(path, encoding)]


def with_layout(file: SourceFile, layout: Layout) -> SourceFile:
    """The file with its text to be read as plain lines, or as rows of a table with a header."""
    kind: Literal["text_lines", "table"] = "text_lines" if layout == "lines" else "table"
    return replace(file, contents=replace(file.contents, kind=kind))


def cut(file: SourceFile, size: int, tail: int = 1) -> list[Extent]:
    """The file in extents of about `size` bytes; a single one where it can only be read from its beginning.

    `tail` is for JSON lists, as `json_array.cut` has it.
    """
    match file.contents.kind:
        case "json_lines":
            return json_lines.cut(file.path, file.contents, size)
        case "json_array":
            return json_array.cut(file.path, file.contents, size, tail)
        case "parquet":
            return parquet.cut(file.path, file.contents, size)
        case _:
            return [WHOLE]


def count(file: SourceFile, extent: Extent) -> Tally:
    """Records and lines in an extent, so that those behind it can be numbered."""
    match file.contents.kind:
        case "json_lines":
            return json_lines.count(file.path, file.contents, extent)
        case "json_array":
            return json_array.count(file.path, file.contents, extent)
        case "parquet":
            return parquet.count(file.path, file.contents, extent)
        case _:
            return Tally()


def read(file: SourceFile, extent: Extent = WHOLE, before: Tally = Tally()) -> Iterator[object]:  # noqa: B008 (frozen)
    """The records of an extent in order, and a `RecordError` for each that can't be parsed.

    Raises:
        FormatError: the file as a whole can't be read; it names the file.
        WrongGuess: a JSON list has to be read as a whole.
    """
    try:
        yield from _read(file, extent, before)
    except FormatError as error:
        raise FormatError(error.message, where=error.where or str(file.path), fix=error.fix) from error


def head(file: SourceFile, size: int) -> list[object]:
    """The first `size` records; raises as `read` does."""
    return list(islice(read(file), size))


def unwrapped(document: object) -> list[object]:
    """The records of a JSON object that is only their wrapper: one list under a usual name, and plain values.

    Raises:
        FormatError: the list is empty.
    """
    inner = [item for item in document.values() if isinstance(item, dict | list)] if isinstance(document, dict) else []
    for key in _WRAPPER_KEYS:
        if isinstance(document, dict) and len(inner) == 1 and isinstance(document.get(key), list):
            if not document[key]:
                raise FormatError(
                    "there is no record in it", fix=f"check that it is the file you mean; its {key!r} is empty"
                )
            return list(document[key])
    return [document]


def _read(file: SourceFile, extent: Extent, before: Tally) -> Iterator[object]:  # noqa: PLR0911 (a table)
    path, contents = file.path, file.contents
    match contents.kind:
        case "json_lines":
            return json_lines.read(path, contents, extent, before)
        case "json_array":
            return json_array.read(path, contents, extent, before)
        case "json_object":
            return iter([_document(path, contents)])
        case "text_lines" | "text":
            return text_tables.read_lines(path, contents)
        case "table":
            return text_tables.read_rows(path, contents)
        case "parquet":
            return parquet.read(path, contents, extent, before)
        case "tar":
            return archives.read(path, contents)
        case "class_folders":
            return listings.labelled_images(path)
        case "pdf_folder":
            return listings.pdfs(path)


def _document(path: Path, contents: Contents) -> object:
    with open_utf8(path, contents) as stream:
        data = read_all(stream, path, contents)
    values = fast_json.parse_lines([data])
    if values is not None:
        return values[0]
    return fast_json.parse_document(decoded(data, "utf-8", contents.mark))


def _described(path: Path, encoding: str | None) -> SourceFile:
    try:
        return SourceFile(path, path.name, look(path, encoding))
    except FormatError as error:
        raise FormatError(error.message, where=error.where or str(path), fix=error.fix) from error


def _data_files(folder: Path) -> list[Path]:
    files = (entry for entry in folder.iterdir() if entry.name.lower().endswith(_DATA_ENDINGS))
    return sorted((file for file in files if file.name not in _NO_SOURCES and file.is_file()), key=_by_number)


def _by_number(file: Path) -> tuple[list[tuple[int, str]], str]:
    """`part-10` comes behind `part-9`."""
    pieces = re.split(r"(\d+)", file.name)
    return [(int(piece), "") if piece.isdecimal() and piece.isascii() else (-1, piece) for piece in pieces], file.name


def _chosen(folder: Path) -> list[Path]:
    for name in FIRST_CHOICES:
        if (folder / name).is_file():
            return [folder / name]
    files = _data_files(folder)
    if len(files) == 1 or (files and _are_shards(files)):
        return files
    if files:
        names = ", ".join(file.name for file in files[:10]) + (", ..." if len(files) > 10 else "")
        raise FormatError(f"the folder holds several data files: {names}", where=str(folder), fix="name one of them")
    there = ", ".join(sorted(entry.name for entry in islice(folder.iterdir(), 10))) or "nothing"
    fix = "name the data file itself"
    raise FormatError(f"the folder holds no data file; there is: {there}", where=str(folder), fix=fix)


def _are_shards(files: list[Path]) -> bool:
    if all(file.suffix == ".parquet" for file in files) or all(_is_tar(file) for file in files):
        return True
    return len({re.sub(r"\d+", "0", file.name) for file in files}) == 1


def _is_tar(file: Path) -> bool:
    return file.name.endswith((".tar", ".tar.gz", ".tgz"))
