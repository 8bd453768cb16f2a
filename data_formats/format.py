"""What a format is: how its records look, how they are recognised and how one becomes conversations.

A format is a value, not a class to inherit from: its file makes one `Format` and the table in `registry.py`
lists it. Nothing here reads files or knows what becomes of a draft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft

Candidate = Draft | RecordError
"""One conversation of a source record, or why that one can't be used."""


def never(record: object) -> bool:  # noqa: ARG001
    """The `marks` of a format that no single record gives away."""
    return False


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which people write training conversations down.

    `matches(record)` tells by its keys whether a parsed record may be of this format; it looks no deeper, so
    that a record with a wrong value is rejected later with a reason and not taken for another format.

    `convert(record)` is pure and yields the candidates of one source record in order: a `Draft`, or a
    `RecordError` for a candidate that can't be used while its neighbours can. Raising `RecordError` ends the
    record with that one bad candidate. No other exception leaves it, whatever the record holds.

    `keys` are the top-level keys a record may have; they find the nearest format when none fits.

    `narrower_than` names formats of which this one is a special case. Where every record fits both, this one is
    taken if some record has what only it can hold (`marks(record)`), and the wider one if none has.
    """

    name: str
    title: str
    schema: str
    example: object
    traps: tuple[str, ...]
    keys: frozenset[str]
    matches: Callable[[object], bool]
    convert: Callable[[object], Iterator[Candidate]]
    narrower_than: tuple[str, ...] = ()
    marks: Callable[[object], bool] = never
