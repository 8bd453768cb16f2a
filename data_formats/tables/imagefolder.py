"""Folders of images, videos or PDF files with a table beside them, as `datasets` calls imagefolder and videofolder.

`{"file_name": path, "text": caption}`; also `*_file_name`, `file_names` and `*_file_names` for several files. A
folder whose subfolders are classes has no table: its records are `{"file_name": "cats/1.jpg", "label": "cats"}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, media_fields
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import MediaReference
from aria_finetune.data_formats.tables import described

# What a record of another format has, which may name its file like this as well.
_FOREIGN_KEYS = frozenset({
    "ground_truth", "messages", "conversations", "conversation", "texts", "image", "images", "video", "videos",
    "annotations", "sentences", "choices", "options", "candidates", "__key__",
})  # fmt: skip


def is_file_column(key: object) -> bool:
    """Whether a column names files by the convention of `datasets`."""
    return isinstance(key, str) and (key in {"file_name", "file_names"} or key.endswith(("_file_name", "_file_names")))


def files(record: Mapping[str, Any]) -> list[MediaReference]:
    """The files a record names, in the order of its columns; null names none.

    Raises:
        RecordError: `bad_schema`, no file, or a name that is no text; `unsupported_modality` for sound.
    """
    named = [media for key in record if is_file_column(key) for media in _column(record[key], key)]
    if not named:
        raise RecordError("bad_schema", "the record names no file in 'file_name' or a column that ends in _file_name")
    return named


def matches(record: object) -> bool:
    """A column of file names, and nothing that belongs to conversations or to Donut's ground truth."""
    return isinstance(record, dict) and any(map(is_file_column, record)) and _FOREIGN_KEYS.isdisjoint(record)


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """A conversation for the text of a record, or for each text of a list.

    Raises:
        RecordError: `bad_schema`, also where it is open which column holds the text; `unsupported_modality`.
    """
    source = fields.mapping(record, "the record")
    media_fields.refuse_audio(source)
    named = [key for key in source if is_file_column(key)]
    yield from described.conversations(files(source), source, named)


def _column(value: object, key: str) -> list[MediaReference]:
    if value is None:
        return []
    if isinstance(value, list):
        return [_file(name, f"{key}[{number}]") for number, name in enumerate(value)]
    return [_file(value, key)]


def _file(value: object, where: str) -> MediaReference:
    name = fields.text(value, where)
    if not name:
        raise RecordError("bad_schema", f"{where} is empty")
    return MediaReference(described.kind_of(name) or "image", name)


FORMAT = Format(
    name="imagefolder",
    title="A folder of images or videos with metadata.jsonl or metadata.csv, or with a folder per class",
    schema=(
        '{"file_name" | "NAME_file_name": PATH, "file_names" | "NAME_file_names": [PATH],\n'
        ' "question": TEXT, "answer": TEXT | "answers": [TEXT]\n'
        ' or "text" | "caption" | "captions": TEXT | [TEXT]   or "label": CLASS}'
    ),
    example={"file_name": "images/0001.jpg", "text": "A red bicycle against a wall."},
    traps=(
        "paths are relative to the metadata file; endings tell images from videos and PDF files",
        "exactly one of text, caption and captions says something about the file; other columns are kept as metadata",
        "a list of texts makes one conversation of each",
        "a label must be the name of a class; the number of a class is bad_schema",
        "files named test*.gif and the like are not taken for a split here, unlike in datasets",
    ),
    keys=frozenset({"file_name", "file_names", *described.TEXT_KEYS, *described.QUESTION_KEYS, "label"}),
    matches=matches,
    convert=convert,
)
