"""ChartQA: `[{"imgname", "query", "label"}]`, and its rows in Parquet files, which hold the image and a list of labels."""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import fields, media_bytes, media_fields, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_KNOWN_KEYS = frozenset({"imgname", "image", "query", "label"})
_SPLITS = ("train", "val", "test")


def matches(record: object) -> bool:
    """`imgname` and `query`, or `image`, `query` and `label`."""
    if not isinstance(record, dict) or "query" not in record:
        return False
    return "imgname" in record or ("image" in record and "label" in record)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a record, with its first label.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    text = fields.text(fields.required(source, "query", "the record"), "query")
    given, repairs = questions.answers(source.get("label"), "label")
    shown = "image" if source.get("imgname") is None else "imgname"
    meta, dropped = media_bytes.rest(source, ("query", "label", shown))
    answer = given[0] if given else None
    image = _image(source, context)
    yield questions.asked([image], text, answer, references=given, meta=meta, repairs=(*repairs, *dropped))


def _image(source: dict[str, object], context: Context) -> MediaReference:
    if source.get("imgname") is None:
        return media_fields.medium("image", fields.required(source, "image", "the record"), "image")
    name = fields.text(source["imgname"], "imgname")
    if not name:
        raise RecordError("bad_schema", "imgname is empty")
    # Names are numbered anew in each split, so only the folder of the file's own split is looked into.
    splits = [split for split in _SPLITS if context.file.name.startswith(split)]
    folders = ("png/", "images/", *(f"{split}/png/" for split in splits))
    return MediaReference("image", name, alternatives=tuple(f"{folder}{name}" for folder in folders))


FORMAT = Format(
    name="chartqa",
    title="ChartQA",
    schema='{"imgname": NAME, "query": TEXT, "label": TEXT | [TEXT]}',
    example={"imgname": "two_col_12.png", "query": "Which year had the highest sales?", "label": "2014"},
    traps=(
        "the image is looked for by its name, and in png/ and images/; in train/png/ for train_human.json and so on",
        "a label that is a number becomes its text (number_as_text); of several labels the first is the answer",
        "a replacement character (U+FFFD) in a text is data and stays",
    ),
    keys=_KNOWN_KEYS,
    matches=matches,
    convert=convert,
)
