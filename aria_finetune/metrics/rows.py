"""What a metric knows of a row: the answers that count as right and what the record says about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aria_finetune.data_formats.record import Record


@dataclass(frozen=True, slots=True)
class Row:
    """A question to be scored.

    `expected` are the answers that count as right, none where no answer is known; `question` the text of the last user
    turn, `meta` what the converter kept of the source, `format` the name of that source's format, `size` width and
    height in pixels of the first picture.
    """

    expected: tuple[str, ...]
    question: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    format: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What an answer is worth, from 0 to 1.

    `parsed` is false where the answer could not be read as what was asked for, a letter, a box, a number; it is then
    worth 0. `read` is what it was read as, `detail` the measure behind the score where that is not the score itself
    (the overlap of two boxes).
    """

    value: float
    parsed: bool = True
    read: str = ""
    detail: float | None = None


def row_of(record: Record) -> Row:
    """What a metric may know of a record of a converted data set."""
    meta = json.loads(record.meta) if record.meta != "{}" else {}
    size = next(((media.width, media.height) for media in record.media), None)
    return Row(expected_answers(record), _question(record), meta, record.source.format, size)


def expected_answers(record: Record) -> tuple[str, ...]:
    """Accepted answers: the record's references, else the text of its closing assistant turn."""
    if record.references:
        return record.references
    last = record.messages[-1] if record.messages else None
    if last is None or last.role != "assistant":
        return ()
    return ("".join(part.text or "" for part in last.content),)


def _question(record: Record) -> str:
    asked = [message for message in record.messages if message.role == "user"]
    return "".join(part.text or "" for part in asked[-1].content) if asked else ""
