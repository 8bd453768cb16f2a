"""ActivityNet-QA: a file of questions (`train_q.json`) and one of answers (`train_a.json`), joined by `question_id`.

Tables that hold question and answer in one row are the same format. The clip of `video_name` X is the file `v_X`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.format import PLAIN, Companion, Context, Format
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.video import clips

_KEYS = frozenset({"video_name", "question", "question_id"})
_QUESTIONS_FILE = re.compile(r"(.*[_-])(?:q|questions?)(\..+)", re.IGNORECASE)


def matches(record: object) -> bool:
    """`video_name`, `question` and `question_id`."""
    return isinstance(record, dict) and record.keys() >= _KEYS


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a record, with its own answer or that of the file beside it.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    question = fields.text(fields.required(source, "question", "the record"), "question")
    name = clips.identifier(fields.required(source, "video_name", "the record"), "video_name")
    found = context.tables.get("answers", {}).get(_id(source), {})
    whole = source if source.get("answer") is not None else source | found
    meta, repairs = media_bytes.rest(whole, ("question", "answer"))
    clip = clips.clip(name if name.startswith("v_") else f"v_{name}", name)
    yield clips.open_question(clip, question, whole.get("answer"), meta=meta, repairs=repairs)


def _id(record: Mapping[str, Any]) -> str | None:
    value = record.get("question_id")
    return str(value) if isinstance(value, str | int) else None


def _find_answers(names: list[str], source: str) -> str | None:
    match = _QUESTIONS_FILE.fullmatch(source)
    wanted = {f"{match[1]}{word}{match[2]}" for word in ("a", "answer", "answers")} if match else set()
    return next((name for name in sorted(names) if name in wanted), None)


def _is_answer(record: object) -> bool:
    return isinstance(record, dict) and {"answer", "question_id"} <= record.keys() and "question" not in record


def _answers(records: Iterator[object]) -> dict[str, dict[str, Any]]:
    known = (record for record in records if isinstance(record, dict))
    return {name: record for record in known if (name := _id(record)) is not None}


FORMAT = Format(
    name="activitynet-qa",
    title="ActivityNet-QA, questions with their answers beside them or in the same row",
    schema=(
        '{"video_name": ID, "question": TEXT, "question_id": ID}                        in train_q.json\n'
        '{"question_id": ID, "answer": TEXT, "type": N}   beside it, in train_a.json, or in the same row'
    ),
    example={
        "video_name": "abc123",
        "question": "is the person in the blue shirt swimming",
        "question_id": "v_abc123_1",
        "answer": "yes",
        "type": 3,
    },
    traps=(
        "the clip is v_<video_name>",
        "train_q.json takes its answers from train_a.json beside it; a question without answer is only for evaluation",
    ),
    keys=_KEYS | {"answer", "type"},
    matches=matches,
    convert=convert,
    companions=(
        Companion("answers", "<split>_a.json for the questions of <split>_q.json", _find_answers, _is_answer, _answers),
    ),
)
