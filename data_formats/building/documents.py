"""JSON documents that hold several lists, and lists in two files: recognising their entries and joining them by ids.

An id is compared as text, for many files write it as a number where their companion writes text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aria_finetune.data_formats.errors import RecordError

SEEN_ENTRIES = 100
"""How many entries at the head of a list tell what it holds, as many as records tell the format of a file."""

Table = dict[str, dict[str, Any] | None]
"""Rows by their ids; None where several differ under one id."""


def is_list_of(value: object, *keys: str) -> bool:
    """Whether `value` is a list whose entries, as far as they are objects, have all of `keys`; one is at least."""
    if not isinstance(value, list):
        return False
    entries = [entry for entry in value[:SEEN_ENTRIES] if isinstance(entry, dict)]
    return bool(entries) and all(key in entry for entry in entries for key in keys)


def plain_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a document says of all its entries in one text, number or truth value, as `data_subtype` of VQAv2 does."""
    return {key: value for key, value in document.items() if isinstance(value, str | int | float)}


def id_text(value: object) -> str | None:
    """An id as text; None for a value that is none."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def table(rows: Iterable[object], key: str) -> Table:
    """The rows by their id at `key`; what has none is no row."""
    found: Table = {}
    for row in rows:
        name = id_text(row.get(key)) if isinstance(row, dict) else None
        if name is not None and isinstance(row, dict):
            found[name] = row if found.setdefault(name, row) == row else None
    return found


def joined(rows: Mapping[str, dict[str, Any] | None], value: object, where: str) -> dict[str, Any] | None:
    """The row of an id; None if there is none.

    Raises:
        RecordError: `bad_schema`, several rows that differ have the id.
    """
    name = id_text(value)
    if name is None or name not in rows:
        return None
    row = rows[name]
    if row is None:
        raise RecordError("bad_schema", f"several {where} have the id {name!r:.60} and differ")
    return row


def together(first: Mapping[str, Any], second: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of two joined rows; those of `second` that differ from `first` stand under `name`."""
    differing = {key: value for key, value in second.items() if key in first and first[key] != value}
    return {**second, **first, **({name: differing} if differing else {})}
