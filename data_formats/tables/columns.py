"""Tables of any columns, which the user names by what they hold: `--column question=q --column answer=a`.

The names are in `Settings.columns`, by role. A role that is not named has the column of its own name, if there is
one. Cells are used as they are: nothing is made of text that looks like a number or like a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, media_fields
from aria_finetune.data_formats.building.questions import IMAGE_PROMPT, VIDEO_PROMPT
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, PartType

ROLES = ("id", "system", "image", "video", "document", "question", "answer", "references")
"""What a column may be named to hold."""

_PLAIN_KEYS = frozenset({"id", "system", "question", "answer", "references"})
_MEDIA_ROLES: tuple[PartType, ...] = ("image", "video", "document")
# How Python writes a list, a tuple or an object out, which tables made with it often hold.
_WRITTEN_OUT = re.compile(r"\s*(\[.*\]|\(.*\)|\{.*\})\s*", re.DOTALL)


def matches(record: object) -> bool:
    """A row of `question` and `answer`, and of nothing but what else has its own name as a role, without media.

    Rows with media or other columns may be of many formats and are taken only where the user names this one.
    """
    return (
        isinstance(record, dict)
        and {"question", "answer"} <= record.keys() <= _PLAIN_KEYS
        and not any(isinstance(value, dict) for value in record.values())
    )


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a row; media without a question are to be described.

    Raises:
        RecordError: `bad_schema`, a column that was named is not there, or a cell holds something else.
    """
    row = fields.mapping(record, "the row")
    columns = _columns(row, context.settings.columns)
    cells = {role: row[column] for role, column in columns.items()}
    media = [medium for role in _MEDIA_ROLES if role in cells for medium in _media(role, cells[role], columns[role])]
    turns = []
    if system := _text(cells.get("system"), "system"):
        turns.append(Turn("system", (system,)))
    turns.append(Turn("user", (*media, _question(cells, media))))
    answer = _text(cells["answer"], columns["answer"]) if "answer" in cells else None
    if answer is not None:
        turns.append(Turn("assistant", (answer,)))
    accepted = [*([answer] if answer else []), *_references(cells.get("references"))]
    meta = fields.rest(row, set(columns.values()))
    if cells.get("id") is not None:
        meta["id"] = cells["id"]
    meta, repairs = media_fields.without_bytes(meta)
    yield draft(turns, references=list(dict.fromkeys(accepted)), meta=meta, repairs=repairs)


def _columns(row: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, str]:
    for role, column in named.items():
        if role not in ROLES:
            raise RecordError("bad_schema", f"a column can't be named to hold {role!r:.60}: {', '.join(ROLES)}")
        if column not in row:
            raise RecordError("bad_schema", f"the row has no column {column!r:.60}, which was named for {role}")
    taken = set(named.values())
    plain = {role: role for role in ROLES if role in row and role not in named and role not in taken}
    return plain | dict(named)


def _media(kind: PartType, value: object, column: str) -> list[MediaReference]:
    if isinstance(value, str) and _WRITTEN_OUT.fullmatch(value):
        raise RecordError("bad_schema", f"{column} holds a list or object written out as text; write one name a cell")
    return [] if value == "" else media_fields.media(kind, value, column)


def _question(cells: Mapping[str, Any], media: list[MediaReference]) -> str:
    if "question" in cells:
        return _text(cells["question"], "question")
    if not media:
        raise RecordError("bad_schema", "no column holds a question or a medium; name one with --column")
    kinds = {medium.kind for medium in media}
    if "document" in kinds:
        raise RecordError("bad_schema", "a document needs a column that holds the question")
    return VIDEO_PROMPT if "video" in kinds else IMAGE_PROMPT


def _text(value: object, column: str) -> str:
    """A cell as text; numbers as they are written in JSON, and null as nothing."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return fields.json_text(value)
    return fields.text(value, column)


def _references(value: object) -> list[str]:
    if isinstance(value, list):
        return [_text(item, f"references[{number}]") for number, item in enumerate(value)]
    text = _text(value, "references")
    if _WRITTEN_OUT.fullmatch(text):
        raise RecordError("bad_schema", "references holds a list written out as text; write one answer a cell")
    return [text] if text else []


FORMAT = Format(
    name="columns",
    title="CSV, TSV or any flat rows, with the columns named by the user",
    schema=(
        'rows of "question" and "answer", perhaps "id", "system" and "references"; or any rows with\n'
        "--column ROLE=COLUMN for each column that counts\n"
        "ROLE: id | system | image | video | document | question | answer | references"
    ),
    example={"id": "00017", "question": "What is the capital of Norway?", "answer": "Oslo"},
    traps=(
        "recognised by itself only for text in the columns question and answer; all else needs --column",
        "cells are text as they are: 00017 stays 00017",
        "a cell that holds a list or object as Python writes it out is bad_schema: it is not evaluated",
        "without a question a medium is to be described; a row without an answer is for evaluation only",
        "columns that are not named are kept as metadata",
    ),
    keys=_PLAIN_KEYS,
    matches=matches,
    convert=convert,
)
