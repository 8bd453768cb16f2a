"""Video-ChatGPT: `[{"q", "a", "video_id"}]` for training, and `[{"Q", "A", "video_name"}]` of its benchmark.

The consistency benchmark asks `Q1` and `Q2` about the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.video import clips

_QUESTION_KEYS = ("q", "Q", "Q1", "Q2")
_ANSWER_KEYS = ("a", "A")
_FEATURES = ".pkl"


def matches(record: object) -> bool:
    """`q`, `a` and `video_id`, or `A` and `video_name` with `Q` or with `Q1` and `Q2`."""
    if not isinstance(record, dict):
        return False
    asked = "Q" in record or {"Q1", "Q2"} <= record.keys()
    return {"q", "a", "video_id"} <= record.keys() or (asked and {"A", "video_name"} <= record.keys())


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One candidate for each question of a record.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    asked = [key for key in _QUESTION_KEYS if key in source]
    if not asked:
        raise RecordError("bad_schema", "the record has no 'q' or 'Q'")
    for key in asked:
        try:
            yield _draft(source, key)
        except RecordError as error:
            yield error


def _draft(source: Mapping[str, Any], key: str) -> Draft:
    question = fields.text(source[key], key)
    name_key = "video_name" if "video_name" in source else "video_id"
    name = clips.identifier(fields.required(source, name_key, "the record"), name_key)
    meta, repairs = media_bytes.rest(source, (*_QUESTION_KEYS, *_ANSWER_KEYS))
    if name.endswith(_FEATURES):
        name = clips.identifier(name.removesuffix(_FEATURES), name_key)
        repairs = (*repairs, "pkl_ending_dropped")
    answer = source.get("A" if "A" in source else "a")
    return clips.open_question(clips.clip(name), question, answer, meta=meta, repairs=repairs)


FORMAT = Format(
    name="video-chatgpt",
    title="Video-ChatGPT, its training data and its benchmark",
    schema='{"q": TEXT, "a": TEXT, "video_id": ID}   or   {"Q" | "Q1", "Q2": TEXT, "A": TEXT, "video_name": ID}',
    example={"q": "What does the woman do first?", "a": "She ties her shoes.", "video_id": "v_abc123"},
    traps=(
        "the ending of the file is not in the data: .mp4, .webm, .mkv, .avi and .mov are tried",
        "where a name ends in .pkl, its precomputed features, the video is looked for (pkl_ending_dropped)",
        "Q1 and Q2 are two records with the same answer",
    ),
    keys=frozenset({*_QUESTION_KEYS, *_ANSWER_KEYS, "video_id", "video_name"}),
    matches=matches,
    convert=convert,
)
