"""NExT-QA: tables of questions about everyday videos, with five choices or with an answer in words.

`video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4`, `answer` counted from 0; the open-ended
variant has no `a0` to `a4` and its answer is text. Videos lie in folders that `map_vid_vidorID.json` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.format import PLAIN, Companion, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference
from aria_finetune.data_formats.video import clips

_OPTIONS = ("a0", "a1", "a2", "a3", "a4")
_ASKED = frozenset({"video", "question", "qid"})
_OPEN_MARKS = frozenset({"frame_count", "additional_ref_answer"})
_USED = ("question", "answer", *_OPTIONS)
_MAP = "map_vid_vidorID.json"


def matches(record: object) -> bool:
    """`video`, `question` and `qid`, and either `a0` to `a4` or what only the open-ended variant has."""
    if not (isinstance(record, dict) and record.keys() >= _ASKED):
        return False
    return _is_choice(record) or ("a0" not in record and "type" in record and bool(_OPEN_MARKS & record.keys()))


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a row.

    Raises:
        RecordError: `bad_schema`.
    """
    row = fields.mapping(record, "the record")
    question = fields.text(fields.required(row, "question", "the record"), "question")
    clip = _clip(row, context.tables.get("folders", {}))
    meta, repairs = media_bytes.rest(row, _USED)
    if _is_choice(row):
        options = clips.options((row[key] for key in _OPTIONS), "a")
        right = clips.index(row.get("answer"), "answer")
        yield clips.choice([clip], question, options, right, context, meta=meta, repairs=repairs)
        return
    other = fields.optional_text(row, "additional_ref_answer")
    others = [other] if other else []
    yield clips.open_question(clip, question, row.get("answer"), others=others, meta=meta, repairs=repairs)


def _is_choice(row: Mapping[str, Any]) -> bool:
    return row.keys() >= set(_OPTIONS)


def _clip(row: Mapping[str, Any], folders: Mapping[str, str]) -> MediaReference:
    name = clips.identifier(fields.required(row, "video", "the record"), "video")
    return clips.clip(folders.get(name, name), name)


def _find_map(names: list[str], source: str) -> str | None:  # noqa: ARG001
    return _MAP if _MAP in names else None


def _is_map(record: object) -> bool:
    return isinstance(record, dict) and bool(record) and all(isinstance(place, str) for place in record.values())


def _folders(records: Iterator[object]) -> dict[str, str]:
    return {
        name: place
        for record in records
        if isinstance(record, dict)
        for name, place in record.items()
        if isinstance(place, str) and place
    }


FORMAT = Format(
    name="nextqa",
    title="NExT-QA tables, with choices and open-ended",
    schema=(
        "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4   with answer 0 to 4, or\n"
        "video,frame_count,width,height,question,answer,qid,type,additional_ref_answer   with answer in words"
    ),
    example={
        "video": "0042",
        "frame_count": "300",
        "width": "640",
        "height": "480",
        "question": "why does the child run to the door",
        "answer": "1",
        "qid": "0",
        "type": "CW",
        "a0": "to close it",
        "a1": "to greet a guest",
        "a2": "to get a toy",
        "a3": "to hide",
        "a4": "to dance",
    },
    traps=(
        "answer is counted from 0",
        f"{_MAP} beside the table names the folder of each video; without it <video>.mp4 is looked for",
        "ids are text: a reader that makes numbers of them loses leading zeros",
    ),
    keys=frozenset({*_ASKED, *_USED, *_OPEN_MARKS, "width", "height", "type"}),
    matches=matches,
    convert=convert,
    companions=(Companion("folders", f"{_MAP}, an object of video ids and their paths", _find_map, _is_map, _folders),),
)
