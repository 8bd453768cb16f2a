"""NLVR2: a sentence about two images that is true or false of them. JSON Lines, in files called `.json`.

`{"identifier": "dev-850-0-0", "sentence", "left_url", "right_url", "label": "True" | "False"}`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import documents, fields, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_KEYS = frozenset({"identifier", "sentence", "left_url", "right_url"})


def matches(record: object) -> bool:
    """`identifier`, `sentence`, `left_url` and `right_url`."""
    return isinstance(record, dict) and record.keys() >= _KEYS


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one sentence of a record with its two images, and whether it is true of them.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    text = fields.text(fields.required(source, "sentence", "the record"), "sentence")
    label = source.get("label")
    answer = str(label) if isinstance(label, bool) else None if label is None else fields.text(label, "label")
    references = () if answer is None else (answer,)
    meta = fields.rest(source, ("sentence", "label"))
    yield questions.asked(_images(source), text, answer, references=references, meta=meta)


def _images(source: Mapping[str, Any]) -> list[MediaReference]:
    identifier = fields.text(fields.required(source, "identifier", "the record"), "identifier")
    pair, dash, _ = identifier.rpartition("-")
    if not dash or not pair:
        raise RecordError("bad_schema", f"identifier {identifier!r:.60} is not split-set-pair-sentence")
    split = pair.split("-")[0]
    folders = [f"{split}/", f"images/{split}/", "images/"]
    directory = documents.id_text(source.get("directory"))
    if directory:
        folders += [f"{split}/{directory}/", f"images/{split}/{directory}/", f"{directory}/", f"images/{directory}/"]
    names = [f"{pair}-img{number}.png" for number in (0, 1)]
    return [
        MediaReference("image", name, alternatives=tuple(f"{folder}{name}" for folder in folders)) for name in names
    ]


FORMAT = Format(
    name="nlvr2",
    title="NLVR2",
    schema=(
        '{"identifier": "SPLIT-SET-PAIR-SENTENCE", "sentence": TEXT, "left_url": URL, "right_url": URL,\n'
        ' "label": "True" | "False", "directory": NUMBER}'
    ),
    example={
        "identifier": "dev-850-0-1",
        "sentence": "Both pictures show a dog.",
        "left_url": "https://example.org/left.jpg",
        "right_url": "https://example.org/right.jpg",
        "label": "False",
    },
    traps=(
        "the images are <identifier without its last field>-img0.png, the left one, and -img1.png, not the URLs",
        "they are looked for in <split>/, images/<split>/ and images/ as well, and in the folder of directory",
        "its files are JSON Lines although they are called .json",
    ),
    keys=_KEYS | {"label"},
    matches=matches,
    convert=convert,
)
