"""EgoSchema: questions about three minutes of somebody's day, with five choices.

`questions.json` has `q_uid`, `question` and `option 0` to `option 4`; `subset_answers.json` has the published
answers as `{q_uid: number}`. The tables on the Hugging Face Hub have `video_idx`, `option` and `answer` instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.format import PLAIN, Companion, Context, Format
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.video import clips

_OPTIONS = tuple(f"option {number}" for number in range(5))
_ANSWERS = "subset_answers.json"


def matches(record: object) -> bool:
    """`question` and `q_uid` with `option 0`, or `video_idx` with `option`."""
    if not isinstance(record, dict) or "question" not in record:
        return False
    return {"q_uid", "option 0"} <= record.keys() or {"video_idx", "option"} <= record.keys()


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a record, with its own answer or that of the file beside it.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    question = fields.text(fields.required(source, "question", "the record"), "question")
    key = "q_uid" if "q_uid" in source else "video_idx"
    name = clips.identifier(fields.required(source, key, "the record"), key)
    answer = source.get("answer")
    if answer is None:
        answer = context.tables.get("answers", {}).get(name)
    meta, repairs = media_bytes.rest(source, ("question", "answer", "option", *_OPTIONS))
    media = [clips.clip(name)]
    right = clips.index(answer, "answer")
    yield clips.choice(media, question, _options(source), right, context, meta=meta, repairs=repairs)


def _options(source: Mapping[str, Any]) -> list[str]:
    if "option" in source:
        return clips.options(fields.array(source["option"], "option"), "option")
    return clips.options((source[key] for key in _OPTIONS if key in source), "option")


def _find_answers(names: list[str], source: str) -> str | None:  # noqa: ARG001
    return _ANSWERS if _ANSWERS in names else None


def _is_table(record: object) -> bool:
    return isinstance(record, dict) and bool(record) and all(isinstance(number, int) for number in record.values())


def _answers(records: Iterator[object]) -> dict[str, object]:
    return {name: number for record in records if isinstance(record, dict) for name, number in record.items()}


FORMAT = Format(
    name="egoschema",
    title="EgoSchema's questions, with the answers of its published subset",
    schema=(
        '{"q_uid": ID, "question": TEXT, "option 0": TEXT, ..., "option 4": TEXT}   or\n'
        '{"video_idx": ID, "question": TEXT, "option": [TEXT], "answer": "0" to "4" | null}'
    ),
    example={
        "q_uid": "0a1b2c",
        "question": "What is the person mostly doing?",
        "option 0": "Cooking.",
        "option 1": "Cleaning.",
        "option 2": "Reading.",
        "option 3": "Painting.",
        "option 4": "Gardening.",
        "answer": 1,
    },
    traps=(
        f"the answers stand in {_ANSWERS} beside the questions, counted from 0",
        "most questions have no published answer: they are only for evaluation and empty_answer otherwise",
        "the clip is <q_uid>.mp4",
    ),
    keys=frozenset({"q_uid", "video_idx", "question", "option", "answer", "google_drive_id", *_OPTIONS}),
    matches=matches,
    convert=convert,
    companions=(Companion("answers", f"{_ANSWERS}, an object of ids and numbers", _find_answers, _is_table, _answers),),
)
