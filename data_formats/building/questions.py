"""Drafts of one question and its answer, which is what most data sets for questions and captions hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference

IMAGE_PROMPT = "Describe the image."
VIDEO_PROMPT = "Describe the video."
"""What is asked where a source has captions only."""

_ANSWER_KEYS = ("answer", "text")


def asked(
    media: Sequence[MediaReference],
    question: str,
    answer: str | None,
    *,
    references: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    repairs: Iterable[str] = (),
) -> Draft:
    """A user turn of the media and the question behind them, and the answer; None if the source has none.

    A draft without an answer passes the rules only where records for evaluation are asked for.
    """
    turns = [Turn("user", (*media, question))]
    if answer is not None:
        turns.append(Turn("assistant", (answer,)))
    return draft(turns, references=references, meta=meta, repairs=repairs)


def majority(answers: Sequence[str]) -> str:
    """The answer given most often; of several the one that was given first. `answers` must not be empty."""
    return Counter(answers).most_common(1)[0][0]


def answers(value: object, where: str) -> tuple[list[str], tuple[str, ...]]:
    """The answers a field holds, and the repairs made: one answer or a list; none for null.

    Each is text, a number (then written as JSON writes it, counted as `number_as_text`), or an object with it under
    `answer` or `text`.

    Raises:
        RecordError: `bad_schema`.
    """
    if value is None:
        return [], ()
    given = value if isinstance(value, list) else [value]
    found = [_answer(item, f"{where}[{number}]" if given is value else where) for number, item in enumerate(given)]
    texts = [item if isinstance(item, str) else json.dumps(item) for item in found]
    return texts, () if texts == found else ("number_as_text",)


def says_more(value: object) -> bool:
    """Whether a list of answers says more than their texts, as how sure each person was; then it stays as metadata."""
    return isinstance(value, list) and any(isinstance(item, dict) and len(item) > 1 for item in value)


def with_hint(question: str, hint: str | None) -> str:
    """The question with a hint on a line of its own above it: `Hint: ...`."""
    return f"Hint: {hint}\n{question}" if hint else question


def _answer(value: object, where: str) -> str | int | float:
    if isinstance(value, dict):
        keys = [key for key in _ANSWER_KEYS if key in value]
        if not keys:
            raise RecordError("bad_schema", f"{where} has no 'answer'")
        value, where = value[keys[0]], f"{where}.{keys[0]}"
    # Tables have NaN where there is nothing.
    if isinstance(value, float) and not math.isfinite(value):
        raise fields.wrong(value, where, "text")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    raise fields.wrong(value, where, "text")
