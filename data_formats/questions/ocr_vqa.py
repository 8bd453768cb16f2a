"""Several questions about one page whose words were read by a machine: `{boxes, context, image_id, qas}`.

Each question is one conversation. The words (`context`) and where they stand (`boxes`) are kept as metadata; Aria
reads the picture itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, image_names, media_bytes, media_fields, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_IMAGE_KEYS = ("image", "image_id")
_ANSWER_KEYS = ("answers", "answer")
_FOLDERS = ("documents/",)
COORDINATES = "boxes of the words of context, as the source gives them"


def matches(record: object) -> bool:
    """`qas` beside `image_id` and one of `context` and `boxes`."""
    if not isinstance(record, dict) or "qas" not in record:
        return False
    return any(key in record for key in _IMAGE_KEYS) and ("context" in record or "boxes" in record)


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One conversation for every question, with its first answer.

    Raises:
        RecordError: `bad_schema`, the record as a whole has no image or no questions.
    """
    page = fields.mapping(record, "the record")
    image = _image(page)
    entries = fields.array(fields.required(page, "qas", "the record"), "qas")
    if not entries:
        raise RecordError("bad_schema", "qas is empty")
    shared, dropped = media_bytes.rest(page, ("qas", "image"))
    if "boxes" in shared:
        shared["coordinates"] = COORDINATES
    for number, entry in enumerate(entries):
        try:
            yield _draft(image, fields.mapping(entry, f"qas[{number}]"), f"qas[{number}]", shared, dropped)
        except RecordError as error:
            yield error


def _draft(
    image: MediaReference, entry: Mapping[str, Any], where: str, shared: dict[str, Any], dropped: tuple[str, ...]
) -> Draft:
    text = fields.text(fields.required(entry, "question", where), f"{where}.question")
    keys = [key for key in _ANSWER_KEYS if entry.get(key) is not None]
    if len(keys) > 1:
        raise RecordError("bad_schema", f"{where} has both 'answers' and 'answer'")
    given, repairs = questions.answers(entry[keys[0]], f"{where}.{keys[0]}") if keys else ([], ())
    known = ("question", *(key for key in _ANSWER_KEYS if not questions.says_more(entry.get(key))))
    rest, more = media_bytes.rest(entry, known)
    meta = shared | {"qa": rest} if rest else shared
    answer = given[0] if given else None
    notes = (*repairs, *dict.fromkeys((*dropped, *more)))
    return questions.asked([image], text, answer, references=given, meta=meta, repairs=notes)


def _image(page: Mapping[str, Any]) -> MediaReference:
    if page.get("image") is not None:
        return media_fields.medium("image", page["image"], "image")
    return image_names.of_id(fields.required(page, "image_id", "the record"), "image_id", *_FOLDERS)


FORMAT = Format(
    name="ocr-qa",
    title="Questions about a page with the words and boxes of its OCR",
    schema=(
        '{"image_id": NAME | STEM, "context": TEXT | [TEXT], "boxes": [BOX],\n'
        ' "qas": [{"question": TEXT, "answers": [TEXT | {"text": TEXT, "answer_start": NUMBER}]}]}'
    ),
    example={
        "image_id": "letter_1",
        "context": "Date: May 3, 1990",
        "boxes": [[10, 20, 60, 34], [66, 20, 98, 34], [104, 20, 120, 34], [126, 20, 160, 34]],
        "qas": [{"question_id": 1, "question": "What is the date?", "answers": ["May 3, 1990", "3 May 1990"]}],
    },
    traps=(
        "one conversation per question; the first answer is the one trained on, all are references",
        "context and boxes stay in the metadata and are no part of the question",
        "image_id is a file name, or a stem to which .jpg, .png and .jpeg are tried, also in images/ and documents/",
        "a question without an answer is empty_answer, unless it is for evaluation",
    ),
    keys=frozenset({"boxes", "context", "image_id", "qas"}),
    matches=matches,
    convert=convert,
)
