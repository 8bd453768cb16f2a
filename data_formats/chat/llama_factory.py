"""LLaMA-Factory's `dataset_info.json`: which columns of a file hold what, and what its speakers are called.

This is no format of its own: any JSON object could be a record of it. The table beside the source says how the
records of a file translate into the plain spelling of alpaca, ShareGPT (`llava`) or chat messages, and these are
formats. Whoever reads a source asks before its format is found:

1. `COMPANION` finds the table beside the source and builds it.
2. `entry_for(table, file name)` gives the entry that names the file, or None: then the table says nothing of it.
3. `renamed(record, entry)` spells each record plainly. An entry without columns and tags says that its file has the
   plain spelling already; its records, and those of any entry that `is_plain`, come back as they are. Nothing is
   raised: a record that lacks a column, or is no object at all, is left for its format to reject.

Columns that the entry does not name are not used by LLaMA-Factory; they go under `meta`, so that they reach the
metadata and no format mistakes them for its own. Preferences keep the names `chosen`, `rejected` and `kto_tag`, by
which they are told from instruction data and refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.format import Companion

FILE_NAME = "dataset_info.json"

Formatting = Literal["alpaca", "sharegpt", "openai"]

_COMMON_COLUMNS = {
    "system": "system",
    "tools": "tools",
    "images": "images",
    "videos": "videos",
    "audios": "audios",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}
_ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_CHAT_COLUMNS = ("messages", "conversation", "conversations")
_TURN_COLUMNS = (*_CHAT_COLUMNS, "chosen", "rejected")
_NEEDED_COLUMNS = ("messages", "prompt", "response")
_ROLE_OF_TAG = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_DEFAULT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_SOURCES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """What the table says of one data set: columns by what they hold, and tags by what they mean.

    Both hold what is written in the table and no defaults.
    """

    name: str
    formatting: Formatting = "alpaca"
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether the records have the plain spelling already."""
        renamed_columns = any(old != new for old, new in _new_names(self).items())
        return not renamed_columns and _is_plain_turn(self)


def entry_for(table: object, file_name: str) -> DatasetEntry | None:
    """The entry of the table that names the file; None if there is none.

    Raises:
        FormatError: the entry is malformed, or two of them say different things of the file.
    """
    named = {
        name: entry
        for name, entry in (table.items() if isinstance(table, dict) else ())
        if isinstance(entry, dict) and _without_dot(entry.get("file_name")) == file_name
    }
    entries = [_entry(name, entry) for name, entry in named.items()]
    for other in entries[1:]:
        if _meaning(other) != _meaning(entries[0]):
            both = f"{entries[0].name!r:.60} and {other.name!r:.60}"
            raise FormatError(
                f"{FILE_NAME} says different things of {file_name}: {both}", fix="take one of them out of it"
            )
    return entries[0] if entries else None


def renamed(record: object, entry: DatasetEntry) -> object:
    """The record in the plain spelling; a record that is no object, or plain already, as it is.

    Turns are spelled as chat messages where their tags are `role` and `content`, and as ShareGPT's otherwise. Where
    a prompt is all there is, it is plain text to pretrain on.
    """
    if not isinstance(record, dict) or entry.is_plain:
        return record
    names = _new_names(entry)
    needed = {entry.columns[column] for column in _NEEDED_COLUMNS if column in entry.columns}
    plain = {new: record.get(old) for old, new in names.items() if old in record or old in needed}
    if entry.formatting != "alpaca":
        plain = {key: _renamed_turns(value, entry) if key in _TURN_COLUMNS else value for key, value in plain.items()}
    other = fields.rest(record, names)
    return plain | ({"meta": other} if other else {})


def _new_names(entry: DatasetEntry) -> dict[str, str]:
    """The names of the columns in the plain spelling, by the names they have."""
    known = _COMMON_COLUMNS | (_ALPACA_COLUMNS if entry.formatting == "alpaca" else {})
    if entry.formatting == "alpaca" and entry.columns.keys() == {"prompt"}:
        known = {"prompt": "text"}
    names = {entry.columns[column]: new for column, new in known.items() if column in entry.columns}
    if entry.formatting != "alpaca":
        column = entry.columns.get("messages", "conversations")
        spellings = _CHAT_COLUMNS if _has_role(entry) else ("conversations",)
        names[column] = column if column in spellings else spellings[0]
    return names


def _has_role(entry: DatasetEntry) -> bool:
    return (_tag(entry, "role_tag"), _tag(entry, "content_tag")) == ("role", "content")


def _tag(entry: DatasetEntry, tag: str) -> str:
    return entry.tags.get(tag, _DEFAULT_TAGS[tag])


def _is_plain_turn(entry: DatasetEntry) -> bool:
    if entry.formatting == "alpaca":
        return True
    keys = (_tag(entry, "role_tag"), _tag(entry, "content_tag"))
    if keys not in {("role", "content"), ("from", "value")}:
        return False
    return all(_tag(entry, tag) in {role, _DEFAULT_TAGS[tag]} for tag, role in _ROLE_OF_TAG.items())


def _renamed_turns(value: object, entry: DatasetEntry) -> object:
    return [_renamed_turn(turn, entry) for turn in value] if isinstance(value, list) else _renamed_turn(value, entry)


def _renamed_turn(turn: object, entry: DatasetEntry) -> object:
    """The turn with its role and text under their plain keys; what else it has stays, out of their way."""
    if not isinstance(turn, dict):
        return turn
    role_key, content_key = _tag(entry, "role_tag"), _tag(entry, "content_tag")
    new_role, new_content = ("role", "content") if _has_role(entry) else ("from", "value")
    roles = {_tag(entry, tag): role for tag, role in _ROLE_OF_TAG.items()}
    plain: dict[str, Any] = {}
    if role_key in turn:
        speaker = turn[role_key]
        plain[new_role] = roles.get(speaker, speaker) if isinstance(speaker, str) else speaker
    if content_key in turn:
        plain[new_content] = turn[content_key]
    for key, value in fields.rest(turn, (role_key, content_key)).items():
        plain[f"other_{key}" if key in plain else key] = value
    return plain


def _entry(name: str, entry: Mapping[str, Any]) -> DatasetEntry:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in get_args(Formatting):
        known = ", ".join(get_args(Formatting))
        raise FormatError(
            f"{FILE_NAME}, {name!r:.60}: the formatting {formatting!r:.60} is not known", fix=f"use {known}"
        )
    columns, tags = _names(name, entry, "columns"), _names(name, entry, "tags")
    if len(set(columns.values())) < len(columns):
        raise FormatError(f"{FILE_NAME}, {name!r:.60}: one column is given two meanings", fix="give it one")
    return DatasetEntry(name, formatting, columns, tags)


def _names(name: str, entry: Mapping[str, Any], key: str) -> dict[str, str]:
    found = entry.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(value, str | None) for value in found.values()):
        raise FormatError(
            f"{FILE_NAME}, {name!r:.60}: {key!r} has to hold names", fix=f"write {{{key!r}: {{NAME: NAME}}}}"
        )
    return {column: value for column, value in found.items() if value}


def _meaning(entry: DatasetEntry) -> tuple[object, ...]:
    return entry.formatting, entry.columns, entry.tags


def _without_dot(name: object) -> object:
    return name.removeprefix("./") if isinstance(name, str) else None


def _find(names: list[str], source: str) -> str | None:  # noqa: ARG001
    return FILE_NAME if FILE_NAME in names else None


def _fits(record: object) -> bool:
    if not isinstance(record, dict) or not record:
        return False
    return all(isinstance(entry, dict) and any(key in entry for key in _SOURCES) for entry in record.values())


def _build(records: Iterator[object]) -> object:
    """The table as it is written; entries are looked at only when their file is read."""
    table = next(records, None)
    return table if isinstance(table, dict) else {}


COMPANION = Companion(
    name="dataset_info",
    beside=f"a file {FILE_NAME} beside the source, as LLaMA-Factory keeps it",
    find=_find,
    fits=_fits,
    build=_build,
)
