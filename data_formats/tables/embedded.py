"""Rows that hold their image or video themselves, as Parquet files of the Hugging Face Hub do, with one text.

`{"image": bytes | {"bytes", "path"}, "text" | "caption": text}`, or a question and its answer, or a class
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import fields, media_bytes, media_fields
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import PartType
from aria_finetune.data_formats.tables import described

_KIND_OF_KEY: dict[str, PartType] = {
    "image": "image", "images": "image", "video": "video", "videos": "video", "pdf": "document",
}  # fmt: skip
_ANSWERING_KEYS = frozenset({"question", "label", *described.TEXT_KEYS})
# Parquet rows of other formats, which say more about what stands where.
_FOREIGN_KEYS = frozenset({
    "messages", "conversations", "conversation", "texts", "ground_truth", "choices", "options", "candidates", "query",
    "image_bytes", "sentences", "prompt", "chosen", "__key__",
})  # fmt: skip


def matches(record: object) -> bool:
    """A medium as bytes, or an object that has room for them, beside a question, a text or a label."""
    return (
        isinstance(record, dict)
        and any(media_bytes.is_embedded(record.get(key)) for key in _KIND_OF_KEY)
        and not _ANSWERING_KEYS.isdisjoint(record)
        and _FOREIGN_KEYS.isdisjoint(record)
    )


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """A conversation for the question or text of a row, or for each text of a list.

    Raises:
        RecordError: `bad_schema`, also where it is open which column holds the text; `unsupported_modality`.
    """
    source = fields.mapping(record, "the record")
    media_fields.refuse_audio(source)
    media = [medium for key, kind in _KIND_OF_KEY.items() for medium in media_fields.media(kind, source.get(key), key)]
    if not media:
        raise RecordError("bad_schema", "the record has no image, video or pdf")
    yield from described.conversations(media, source, _KIND_OF_KEY)


FORMAT = Format(
    name="embedded-media",
    title="Parquet rows that hold an image or video, with a question, a text or a class",
    schema=(
        '{"image" | "images" | "video" | "videos" | "pdf": MEDIUM | [MEDIUM],\n'
        ' "question": TEXT, "answer": TEXT | "answers": [TEXT]\n'
        ' or "text" | "caption" | "captions": TEXT | [TEXT]   or "label": CLASS}\n'
        'MEDIUM: BYTES | {"bytes": BYTES | null, "path": PATH | null}'
    ),
    example={"image": {"bytes": None, "path": "images/1.jpg"}, "caption": "Two boats at a pier."},
    traps=(
        "bytes count before a path; a path without bytes is relative to the media root",
        "of several answers the most frequent is the answer, the first of them where they tie; all are accepted",
        "a label must be the name of a class; the number of a class is bad_schema",
        "two columns that may be the text are not chosen between: name the one with --column",
    ),
    keys=frozenset({*_KIND_OF_KEY, *_ANSWERING_KEYS, *described.QUESTION_KEYS}),
    matches=matches,
    convert=convert,
)
