"""Tables of images and captions: the lines of Flickr8k and Flickr30k, rows, and one object of names and captions.

Lines: `x.jpg#0<TAB>caption`, `x.jpg<TAB>caption` or `x.jpg,caption`. Rows: `{"image", "caption"}`, also with a list of
captions, or `{"image_name", "comment_number", "comment"}`. One object: `{"x.jpg": "caption" | ["caption"]}`. Each
caption is one conversation.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import documents, fields, image_names, media_bytes, media_fields, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_NUMBERED = re.compile(r"(?P<name>[^\t]+)#(?P<number>\d{1,9})\t(?P<caption>[^\t]*)")
_TABBED = re.compile(r"(?P<name>[^\t]+)\t(?P<caption>[^\t]*)")
_WITH_COMMA = re.compile(r"(?P<name>[^\t,]+),(?P<caption>.*)", re.DOTALL)
_HEADER = re.compile(r"(?:image|image_name|file_?name)[\t,](?:caption|comment|text)", re.IGNORECASE)
_NAME_KEYS = ("image", "image_name")
_CAPTION_KEYS = ("caption", "comment")
_FOREIGN_KEYS = frozenset({
    "conversations", "conversation", "messages", "question", "query", "instruction", "prompt", "text", "video", "__key__",
})  # fmt: skip


def matches_line(record: object) -> bool:
    """A line of the name of an image and a caption, or the header above such lines."""
    return isinstance(record, str) and (_split(record) is not None or _HEADER.fullmatch(record) is not None)


def unfold_lines(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """The lines without a header."""
    for number, record in enumerate(records):
        if number or not (isinstance(record, str) and _HEADER.fullmatch(record)):
            yield record


def convert_line(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one caption of a line.

    Raises:
        RecordError: `bad_schema`.
    """
    parts = _split(fields.text(record, "the line"))
    if parts is None:
        raise RecordError("bad_schema", "the line is not the name of an image, a tab or comma, and a caption")
    name, number, caption = parts
    meta = {} if number is None else {"caption_number": number}
    yield _captioned(image_names.named(name), caption, meta)


def matches_row(record: object) -> bool:
    """`image` and `caption`, or `image_name` and `comment`, no question, and an image that is named and not held."""
    if not isinstance(record, dict) or media_bytes.is_embedded(record.get("image")):
        return False
    row = _stripped(record)
    named = any(key in row for key in _NAME_KEYS) and any(key in row for key in _CAPTION_KEYS)
    return named and _FOREIGN_KEYS.isdisjoint(row)


def convert_row(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One conversation for every caption of a row.

    Raises:
        RecordError: `bad_schema`, the row as a whole has no image or no caption.
    """
    row = _stripped(fields.mapping(record, "the row"))
    image = _image(row)
    key = _one(row, _CAPTION_KEYS)
    meta, dropped = media_bytes.rest(row, (*_NAME_KEYS, key))
    yield from _each(image, row[key], key, meta, dropped)


def matches_names(record: object) -> bool:
    """An object whose keys are names of images and whose values are text or lists of it."""
    if not isinstance(record, dict) or not record:
        return False
    head = list(record.items())[: documents.SEEN_ENTRIES]
    return all(image_names.has_ending(name) and isinstance(value, str | list) for name, value in head)


def unfold_names(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """Every name with its captions."""
    for record in records:
        if isinstance(record, dict):
            yield from record.items()
        else:
            yield record


def convert_names(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One conversation for every caption of a name.

    Raises:
        RecordError: `bad_schema`.
    """
    if not isinstance(record, tuple):
        raise fields.wrong(record, "the document", "an object of names and captions")
    name, captions = record
    yield from _each(image_names.named(name), captions, "caption", {}, ())


def _split(line: str) -> tuple[str, int | None, str] | None:
    """The name, the number of the caption if there is one, and the caption; None for a line of something else."""
    found = _NUMBERED.fullmatch(line)
    if found:
        return found["name"], int(found["number"]), found["caption"]
    found = _TABBED.fullmatch(line) or _WITH_COMMA.fullmatch(line)
    if not found or not image_names.has_ending(found["name"]):
        return None
    return found["name"], None, _unquoted(line, found["caption"])


def _unquoted(line: str, caption: str) -> str:
    """The caption without the quotes that a table puts around one with a comma in it."""
    if not caption.startswith('"') or "\t" in line:
        return caption
    cells = next(csv.reader([line]), [])
    return cells[1] if len(cells) == 2 else caption


def _stripped(record: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the blank that follows each bar in `image_name| comment_number| comment`."""
    if not any(key.startswith(" ") for key in record):
        return dict(record)
    return {
        key.strip(): value.removeprefix(" ") if isinstance(value, str) and key.startswith(" ") else value
        for key, value in record.items()
    }


def _one(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    given = [key for key in keys if row.get(key) is not None]
    if len(given) != 1:
        raise RecordError("bad_schema", f"the row needs one of {' and '.join(map(repr, keys))}")
    return given[0]


def _image(row: Mapping[str, Any]) -> MediaReference:
    key = _one(row, _NAME_KEYS)
    value = row[key]
    return image_names.named(value) if isinstance(value, str) else media_fields.medium("image", value, key)


def _each(
    image: MediaReference, value: object, key: str, meta: Mapping[str, Any], repairs: tuple[str, ...]
) -> Iterator[Candidate]:
    captions = value if isinstance(value, list) else [value]
    if not captions:
        raise RecordError("bad_schema", f"{key} is an empty list")
    for number, caption in enumerate(captions):
        try:
            text = fields.text(caption, f"{key}[{number}]" if captions is value else key)
        except RecordError as error:
            yield error
        else:
            yield _captioned(image, text, meta, repairs)


def _captioned(image: MediaReference, caption: str, meta: Mapping[str, Any], repairs: tuple[str, ...] = ()) -> Draft:
    return questions.asked([image], questions.IMAGE_PROMPT, caption, references=(caption,), meta=meta, repairs=repairs)


LINES = Format(
    name="flickr-lines",
    title="Flickr8k and Flickr30k as lines of text",
    schema="IMAGE#NUMBER<TAB>CAPTION, or IMAGE<TAB>CAPTION, or IMAGE,CAPTION",
    example="dog_42.jpg#0\tA dog runs after a ball .",
    traps=(
        "there may be a header, as in image,caption, or none",
        "what stands before # is the name as it is: Flickr8k has one that ends in .jpg.1",
        "a blank before the full stop is part of the caption and stays",
        "images are looked for in images/ as well",
    ),
    keys=frozenset(),
    matches=matches_line,
    convert=convert_line,
    unfold=unfold_lines,
)

ROWS = Format(
    name="image-captions",
    title="Tables and JSON records of an image and its caption, or a list of them",
    schema='{"image": PATH, "caption": TEXT | [TEXT]} or {"image_name": NAME, "comment_number": NUMBER, "comment": TEXT}',
    example={"image": "dog_42.jpg", "caption": "A dog runs after a ball."},
    traps=(
        "several captions in a list are as many records",
        "in the table of Flickr30k each bar is followed by a blank, which belongs to neither name nor cell",
        "images are looked for in images/ as well; rows that hold their image are embedded-media",
    ),
    keys=frozenset({*_NAME_KEYS, *_CAPTION_KEYS, "comment_number"}),
    matches=matches_row,
    convert=convert_row,
)

NAMES = Format(
    name="caption-names",
    title="One object of names of images and their captions",
    schema="{NAME: TEXT | [TEXT]}",
    example={"dog_42.jpg": ["A dog runs after a ball.", "A brown dog on a lawn."], "cat_7.png": "A cat sleeps."},
    traps=(
        "every key must end as image files do, or the object is not recognised",
        "several captions in a list are as many records",
    ),
    keys=frozenset(),
    matches=matches_names,
    convert=convert_names,
    unfold=unfold_names,
)

FORMATS = (LINES, ROWS, NAMES)
