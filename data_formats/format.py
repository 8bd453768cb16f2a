"""What a format is: how its records look, how they are recognised and how one becomes conversations.

A format is a value, not a class to inherit from: its file makes one `Format` and the table in `registry.py`
lists it. Nothing here reads files or knows what becomes of a draft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft

Candidate = Draft | RecordError
"""One conversation of a source record, or why that one can't be used."""

Answers = Literal["both", "letter", "text"]
Take = Literal["chosen"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may choose about converting.

    `answers` is how the answer to a multiple-choice question is written: `A. text`, the letter or the text. `take`
    makes instruction data of preferences. `columns` names the columns of a table by what they hold.
    """

    answers: Answers = "both"
    take: Take | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def nothing_beside(name: str) -> bytes:
    """The `beside` of a record that stands by itself."""
    raise RecordError("media_missing", f"there is no file {name!r:.120}")


@dataclass(frozen=True, slots=True)
class Context:
    """All that a converter knows beside its record.

    `tables` holds what the format's companions gave, by their names; a companion that is not there has no entry.
    `file` is the source file, relative to the source where that is a folder; only its name may be looked at.
    `beside(name)` gives the bytes of a small file that a record names, found as media are, and raises `RecordError`
    (`media_missing` and its like) where there is none.
    """

    settings: Settings = field(default_factory=Settings)
    tables: Mapping[str, Any] = field(default_factory=dict)
    file: PurePath = field(default_factory=PurePath)
    beside: Callable[[str], bytes] = nothing_beside


PLAIN = Context()


@dataclass(frozen=True, slots=True)
class Companion:
    """A file beside the source without which its records are not whole: answers, captions, a table of names.

    `find(names, source)` picks it among the names of the files beside the source by the documented rule `beside`,
    or gives None; a file that the user names (`--with`) is taken if `fits(its first record)`. `build(records)` makes
    the table that converters find in `Context.tables`. Where a `required` one is missing, nothing is converted.
    """

    name: str
    beside: str
    find: Callable[[list[str], str], str | None]
    fits: Callable[[object], bool]
    build: Callable[[Iterator[object]], object]
    required: bool = False


def never(record: object) -> bool:  # noqa: ARG001
    """The `marks` of a format that no single record gives away."""
    return False


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which people write training conversations down.

    `matches(record)` tells by its keys whether a parsed record may be of this format; it looks no deeper, so
    that a record with a wrong value is rejected later with a reason and not taken for another format.

    `convert(record, context)` is pure and yields the candidates of one source record in order: a `Draft`, or a
    `RecordError` for a candidate that can't be used while its neighbours can. Raising `RecordError` ends the
    record with that one bad candidate. No other exception leaves it, whatever the record holds.

    `keys` are the top-level keys a record may have; they find the nearest format when none fits.

    `narrower_than` names formats of which this one is a special case. Where every record fits both, this one is
    taken if some record has what only it can hold (`marks(record)`), and the wider one if none has. With `marks` of
    None it is always taken.

    `unfold(records, context)` makes the records of a format that do not stand one by one in the file: those of a
    JSON document with several lists, or rows of which one needs another. `matches` is then asked about what stands
    in the file. It yields a `RecordError` for a record that can't be used, passes on those it is given, and raises
    one only where the whole file is wrong.

    `refused` says why data of this kind are told by name and not converted.
    """

    name: str
    title: str
    schema: str
    example: object
    traps: tuple[str, ...]
    keys: frozenset[str]
    matches: Callable[[object], bool]
    convert: Callable[[object, Context], Iterator[Candidate]]
    narrower_than: tuple[str, ...] = ()
    marks: Callable[[object], bool] | None = never
    companions: tuple[Companion, ...] = ()
    unfold: Callable[[Iterator[object], Context], Iterator[object]] | None = None
    refused: str | None = None
