"""Multiple-choice questions in words alone, as AI2 writes them: ARC, and OpenBookQA and CommonsenseQA like it.

Rows of the hub: `{"id", "question", "choices": {"text": [TEXT], "label": [LABEL]}, "answerKey": LABEL}`; OpenBookQA says
`question_stem`. The original files: `{"id", "question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.video import clips

_MEDIA = frozenset({"image", "images", "image_path", "video", "video_path"})


def matches(record: object) -> bool:
    """Labelled `choices` beside a question or inside it, and no medium."""
    if not isinstance(record, dict) or record.keys() & _MEDIA:
        return False
    asked, shown = record.get("question"), record.get("choices")
    if isinstance(asked, dict):
        return asked.keys() >= {"stem", "choices"}
    if not isinstance(shown, dict) or not shown.keys() >= {"text", "label"}:
        return False
    return "question" in record or "question_stem" in record


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a record.

    Raises:
        RecordError: `bad_schema`, among others for an `answerKey` that is none of the labels.
    """
    source = fields.mapping(record, "the record")
    text, labels, options = _asked(source)
    key = source.get("answerKey")
    right = None if key is None or key == "" else _place(key, labels)
    meta = fields.rest(source, ("question", "question_stem", "choices", "answerKey"))
    yield clips.choice([], text, options, right, context, meta=meta)


def _asked(source: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    """The question, the labels of its options and their texts."""
    if isinstance(source.get("question"), dict):
        inner = source["question"]
        listed = fields.array(fields.required(inner, "choices", "question"), "question.choices")
        rows = [fields.mapping(choice, f"question.choices[{number}]") for number, choice in enumerate(listed)]
        labels, options = [row.get("label") for row in rows], [row.get("text") for row in rows]
        text = fields.required(inner, "stem", "question")
    else:
        shown = fields.mapping(fields.required(source, "choices", "the record"), "choices")
        labels = fields.array(fields.required(shown, "label", "choices"), "choices.label")
        options = fields.array(fields.required(shown, "text", "choices"), "choices.text")
        key = "question" if "question" in source else "question_stem"
        text = fields.required(source, key, "the record")
    if len(labels) != len(options):
        raise RecordError("bad_schema", f"{len(labels)} labels for {len(options)} choices")
    return fields.text(text, "question"), clips.options(labels, "labels"), clips.options(options, "choices")


def _place(key: object, labels: list[str]) -> int:
    if not isinstance(key, str) or labels.count(key) != 1:
        raise RecordError("bad_schema", f"answerKey {key!r:.30} is not one of the labels")
    return labels.index(key)


FORMAT = Format(
    name="arc",
    title="ARC, OpenBookQA and CommonsenseQA: multiple choice in words alone",
    schema=(
        '{"id": ID, "question": TEXT, "choices": {"text": [TEXT], "label": [LABEL]}, "answerKey": LABEL}, or\n'
        '{"id": ID, "question": {"stem": TEXT, "choices": [{"text": TEXT, "label": LABEL}]}, "answerKey": LABEL}'
    ),
    example={
        "id": "Example_1",
        "question": "Which of these gives its own light?",
        "choices": {"text": ["the Moon", "the Sun", "a mirror", "Venus"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    traps=(
        "labels are letters, or 1 to 4 in some rows; the options are shown as A, B, C, ... in their order",
        "an empty answerKey is a question without an answer, for evaluation only",
    ),
    keys=frozenset({"id", "question", "question_stem", "choices", "answerKey"}),
    matches=matches,
    convert=convert,
)
