"""What a conversion will do, decided before the first record is converted: files, format, and how the work is split.

A plan depends on the source and the options alone, never on how many processes there are, and is small enough to be
sent to each of them. Knows formats and readers; converts nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from aria_finetune.conversion.options import ConversionOptions
from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import internvl, llama_factory
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.format import Companion, Context, Format
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.reading.extents import WHOLE, Extent, Tally
from aria_finetune.data_formats.reading.sources import SourceFile
from aria_finetune.data_formats.tables import columns

SPLIT_BYTES = {"none": 32 << 20, "stat": 32 << 20, "header": 16 << 20, "decode": 4 << 20}
"""About how much of a source is one piece of work, by how far media are looked into: what is lost by a kill."""

DATASET_INFO = "dataset_info.json"

Count = Callable[[Sequence[tuple[SourceFile, Extent]]], Iterable[Tally]]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to convert, the folders in which its media lie, and other files of which its records need something.

    `notices` are counted with the repairs of each of its records.
    """

    source: SourceFile
    roots: tuple[Path, ...]
    notices: tuple[str, ...] = ()
    companions: tuple[tuple[str, Path], ...] = ()
    dataset_info: Path | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A piece of work: an extent of the file `files[file]`, with `before` records and lines ahead of it in that file."""

    number: int
    file: int
    extent: Extent = WHOLE
    before: Tally = Tally()  # noqa: RUF009 (frozen)


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """All of a conversion; `format` is a name in the registry."""

    format: str
    files: tuple[PlannedFile, ...]
    splits: tuple[Split, ...]
    options: ConversionOptions
    records: int | None = None
    """How many source records there are, where they were counted."""

    def describe(self) -> dict[str, Any]:
        """What must be equal for two conversions to give the same bytes, as plain JSON types."""
        return {
            "format": self.format,
            "files": [_described(file) for file in self.files],
            "splits": [
                [split.file, split.extent.start, split.extent.stop, split.before.records] for split in self.splits
            ],
            "options": self.options.to_dict() | {"max_rejects": None},
            "converter": [] if self.options.converter is None else _marks([self.options.converter]),
        }


def find_files(source: Path, options: ConversionOptions) -> tuple[Format, list[PlannedFile]]:
    """The files of a source and their format.

    Raises:
        FormatError: the source can't be read, no format or more than one fits, or a companion is missing.
    """
    known = registry.formats(options.converter)
    if options.columns and options.format == "auto":
        options = replace(options, format=columns.FORMAT.name)
    located = sources.locate(source, options.encoding)
    files = [PlannedFile(file, options.media_roots or (_folder(file),)) for file in located]
    files = [part for file in files for part in _annotation_files(file, options)]
    files = [replace(file, dataset_info=_dataset_info(file, options)) for file in files]
    form, layout = _format_of(files[0], options, known)
    if form.refused and options.take is None:
        fix = "train on other data, or take the better answers of preferences with --take chosen"
        raise FormatError(f"it is {form.name}: {form.refused}", where=str(files[0].source.path), fix=fix)
    files = [_laid_out(file, layout) for file in files]
    return form, [replace(file, companions=_companions(file.source, form, options)) for file in files]


def cut_work(
    form: Format, files: Sequence[PlannedFile], options: ConversionOptions, count: Count, tail: int | None = 1
) -> ConversionPlan:
    """Cut files into splits.

    Args:
        form: the format of all of them.
        files: as `find_files` gave them.
        options: as the user chose them.
        count: counts the records of extents, in their order; in several processes, perhaps.
        tail: how much of a record's end a JSON list is cut by (`json_array.cut`); None to read it as a whole.

    Raises:
        FormatError: a file can't be read.
    """
    size = SPLIT_BYTES[options.verify]
    extents = [(number, extent) for number, file in enumerate(files) for extent in _extents(file, form, size, tail)]
    # What is alone in its file is numbered from 0, so that it need not be counted.
    pieces = Counter(number for number, _ in extents)
    alone = {number for number in pieces if pieces[number] == 1}
    counted = iter(count([(files[number].source, extent) for number, extent in extents if number not in alone]))
    splits: list[Split] = []
    before, last, total = Tally(), -1, 0
    for number, extent in extents:
        before = before if number == last else Tally()
        splits.append(Split(len(splits), number, extent, before))
        tally = Tally() if number in alone else next(counted)
        before, last, total = before + tally, number, total + tally.records
    return ConversionPlan(form.name, tuple(files), tuple(splits), options, None if alone else total)


def records_of(file: PlannedFile, extent: Extent, before: Tally, form: Format, context: Context) -> Iterator[object]:
    """The records of an extent in order, and a `RecordError` for each that can't be parsed.

    Raises:
        FormatError: the file can't be read.
        WrongGuess: a JSON list has to be read as a whole.
    """
    values = sources.read(file.source, extent, before)
    if file.dataset_info is not None:
        values = _renamed(values, file.dataset_info, file.source.name)
    if form.unfold is not None:
        return _unfolded(form.unfold(values, context), file)
    if file.source.contents.kind == "json_object":
        return _unwrapped(values, form)
    return values


def read_context(
    file: PlannedFile, form: Format, options: ConversionOptions, beside: Callable[[str], bytes]
) -> Context:
    """What the converter is told beside the records: settings, and the tables of companions, which are read here."""
    tables = {}
    for name, path in file.companions:
        companion = next(companion for companion in form.companions if companion.name == name)
        tables[name] = companion.build(_values(path, options))
    return Context(options.settings, tables, PurePath(file.source.name), beside)


def _values(path: Path, options: ConversionOptions) -> Iterator[object]:
    located = sources.locate(path, options.encoding)[0]
    located = sources.with_layout(located, "rows") if located.contents.kind == "text" else located
    for value in sources.read(located):
        if isinstance(value, RecordError):
            raise FormatError(f"a record of it can't be read: {value}", where=str(path), fix="mend the file")
        yield value


def _folder(file: SourceFile) -> Path:
    return file.path if file.path.is_dir() else file.path.parent


def _described(file: PlannedFile) -> list[Any]:
    paths = [file.source.path, *(path for _, path in file.companions)]
    paths += [file.dataset_info] if file.dataset_info else []
    return [_marks(paths), [os.path.abspath(root) for root in file.roots], file.source.contents.kind]  # noqa: PTH100


def _marks(paths: Sequence[Path]) -> list[list[Any]]:
    """What changes when a file does."""
    states = [path.stat() for path in paths]
    return [
        [os.path.abspath(path), state.st_size, state.st_mtime_ns]  # noqa: PTH100
        for path, state in zip(paths, states, strict=True)
    ]


def _extents(file: PlannedFile, form: Format, size: int, tail: int | None) -> list[Extent]:
    if form.unfold is not None or (tail is None and file.source.contents.kind == "json_array"):
        return [WHOLE]
    return sources.cut(file.source, size, tail or 1)


def _annotation_files(file: PlannedFile, options: ConversionOptions) -> list[PlannedFile]:
    """The files that an InternVL meta file names, each with its own media root; other files as they are."""
    if file.source.contents.kind != "json_object":
        return [file]
    document = next(sources.read(file.source))
    if not internvl.is_meta(document):
        return [file]
    found = []
    for entry in internvl.annotations(document):
        path = _first_existing(entry.annotation, file.roots)
        located = sources.locate(path, options.encoding)
        roots = (*(root / entry.root for root in file.roots), *file.roots)
        notices = () if entry.repeat_time == 1 else ("repeat_time_not_applied",)
        found += [PlannedFile(replace(part, name=f"{entry.name}/{part.name}"), roots, notices) for part in located]
    return found


def _first_existing(name: str, roots: Sequence[Path]) -> Path:
    for root in roots:
        if (root / name).exists():
            return root / name
    raise FormatError(f"the annotation file {name!r:.200} is not there", where=str(roots[0]), fix="check the meta file")


def _dataset_info(file: PlannedFile, options: ConversionOptions) -> Path | None:
    named = [path for path in options.companions if path.name == DATASET_INFO]
    path = named[0] if named else _folder(file.source) / DATASET_INFO
    if not path.is_file() or path == file.source.path:
        return None
    table = next(_values(path, options))
    return path if llama_factory.entry_for(table, file.source.path.name) is not None else None


def _renamed(values: Iterator[object], info: Path, name: str) -> Iterator[object]:
    entry = llama_factory.entry_for(next(sources.read(sources.locate(info)[0])), PurePath(name).name)
    for value in values:
        yield value if entry is None or isinstance(value, RecordError) else llama_factory.renamed(value, entry)


def _format_of(file: PlannedFile, options: ConversionOptions, known: Sequence[Format]) -> tuple[Format, str | None]:
    """The format of a file's records, and for text that is not JSON whether these are lines or rows."""
    chosen = None if options.format == "auto" else registry.get(options.format, known)
    if file.source.contents.kind == "text":
        return _format_of_text(file, chosen, known)
    if chosen is not None:
        return chosen, None
    head = _head(file)
    if file.source.contents.kind == "json_object" and not any(form.matches(head[0]) for form in known):
        head = sources.unwrapped(head[0])
    return _detected(head, known), None


def _format_of_text(file: PlannedFile, chosen: Format | None, known: Sequence[Format]) -> tuple[Format, str | None]:
    lines = sources.head(sources.with_layout(file.source, "lines"), registry.DETECTION_RECORDS)
    candidates = [chosen] if chosen else [form for form in known if all(form.matches(line) for line in lines)]
    if candidates and all(form.matches(line) for form in candidates for line in lines):
        return registry.detect(lines, candidates), "lines"
    rows = sources.with_layout(file.source, "rows")
    return chosen or _detected(sources.head(rows, registry.DETECTION_RECORDS), known), "rows"


def _head(file: PlannedFile) -> list[object]:
    values = iter(sources.head(file.source, registry.DETECTION_RECORDS))
    if file.dataset_info is not None:
        values = _renamed(values, file.dataset_info, file.source.name)
    return list(values)


def _detected(head: list[object], known: Sequence[Format]) -> Format:
    good = [value for value in head if not isinstance(value, RecordError)]
    if not good:
        fix = "give JSON Lines, a JSON list, a table, Parquet or tar, in a format of `aria-finetune formats`"
        raise FormatError(f"none of its first {len(head)} records can be parsed; the first: {head[0]}", fix=fix)
    return registry.detect(good, known)


def _unwrapped(values: Iterator[object], form: Format) -> Iterator[object]:
    for value in values:
        yield from [value] if form.matches(value) else sources.unwrapped(value)


def _unfolded(values: Iterator[object], file: PlannedFile) -> Iterator[object]:
    try:
        yield from values
    except RecordError as error:
        fix = "mend the file, or name another format with --format"
        raise FormatError(str(error), where=str(file.source.path), fix=fix) from error


def _laid_out(file: PlannedFile, layout: str | None) -> PlannedFile:
    if layout is None or file.source.contents.kind != "text":
        return file
    return replace(file, source=sources.with_layout(file.source, "lines" if layout == "lines" else "rows"))


def _companions(file: SourceFile, form: Format, options: ConversionOptions) -> tuple[tuple[str, Path], ...]:
    folder = _folder(file)
    beside = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if form.companions else []
    found = []
    for companion in form.companions:
        path = _named(companion, options) or _beside(companion, folder, beside, file)
        if path is None and companion.required:
            raise FormatError(
                f"{form.name} needs its {companion.name}, and it is not there ({companion.beside})",
                where=str(file.path),
                fix="put it beside the source, or name it with --with",
            )
        found += [(companion.name, path)] if path else []
    return tuple(found)


def _named(companion: Companion, options: ConversionOptions) -> Path | None:
    for path in options.companions:
        if path.name != DATASET_INFO and companion.fits(next(_values(path, options), None)):
            return path
    return None


def _beside(companion: Companion, folder: Path, names: list[str], file: SourceFile) -> Path | None:
    name = companion.find(names, file.path.name)
    return folder / name if name else None
