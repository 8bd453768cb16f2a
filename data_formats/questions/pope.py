"""Yes-or-no questions that probe for objects and facts: POPE as JSON Lines, and MME as lines with tabs.

POPE: `{"question_id", "image", "text", "label": "yes" | "no"}`; its files are called `.json` all the same.
MME: `image.jpg<TAB>question<TAB>Yes`, one file for each category.
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import (
    fields,
    image_names,
    media_bytes,
    media_fields,
    preference_keys,
    questions,
)
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_POPE_KEYS = frozenset({"question_id", "image", "text", "label"})


def matches_pope(record: object) -> bool:
    """`question_id`, `image`, `text` and `label`."""
    return isinstance(record, dict) and record.keys() >= _POPE_KEYS and not preference_keys.is_preference(record)


def convert_pope(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one question of a record.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    text = fields.text(fields.required(source, "text", "the record"), "text")
    label = source.get("label")
    answer = None if label is None else fields.text(label, "label")
    value = fields.required(source, "image", "the record")
    image = image_names.named(value) if isinstance(value, str) else media_fields.medium("image", value, "image")
    meta, dropped = media_bytes.rest(source, ("image", "text", "label"))
    yield questions.asked([image], text, answer, references=_given(answer), meta=meta, repairs=dropped)


def matches_mme(record: object) -> bool:
    """A line of three cells between tabs, the first of which is the name of an image."""
    if not isinstance(record, str):
        return False
    cells = record.split("\t")
    return len(cells) == 3 and image_names.has_ending(cells[0])


def convert_mme(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a line.

    Raises:
        RecordError: `bad_schema`, there are not three cells or no image is named.
    """
    cells = fields.text(record, "the line").split("\t")
    if len(cells) != 3 or not cells[0]:
        raise RecordError("bad_schema", f"the line has {len(cells)} cells; image, question and answer are needed")
    name, text, answer = cells
    # MME has a file and a folder for each category.
    category = context.file.stem
    folders = (f"{category}/", f"{category}/images/", f"images/{category}/") if category else ()
    image = MediaReference("image", name, alternatives=tuple(f"{folder}{name}" for folder in ("images/", *folders)))
    meta = {"category": category} if category else {}
    yield questions.asked([image], text, answer, references=_given(answer), meta=meta)


def _given(answer: str | None) -> tuple[str, ...]:
    return () if answer is None else (answer,)


POPE = Format(
    name="pope",
    title="POPE",
    schema='{"question_id": ID, "image": NAME, "text": QUESTION, "label": "yes" | "no"}',
    example={"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "text": "Is there a dog?", "label": "yes"},
    traps=(
        "its files are JSON Lines although they are called .json",
        "text is the question and label the answer",
        "an image of COCO is looked for in val2014/, images/ and images/val2014/ as well",
    ),
    keys=_POPE_KEYS,
    matches=matches_pope,
    convert=convert_pope,
    narrower_than=("embedded-media",),
    marks=None,
)

MME = Format(
    name="mme",
    title="MME",
    schema="IMAGE<TAB>QUESTION<TAB>Yes | No",
    example="0042.jpg\tIs there a dog in this image? Please answer yes or no.\tYes",
    traps=(
        "there is no header; each line is one question",
        "the name of the file is the category: images are looked for in its folder and in images/ as well",
        "a line of more cells, as with the answers of a model, is another format",
    ),
    keys=frozenset(),
    matches=matches_mme,
    convert=convert_mme,
)

FORMATS = (POPE, MME)
