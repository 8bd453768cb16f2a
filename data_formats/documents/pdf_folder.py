"""A folder of PDF files: each with the text it holds beside the picture of its pages, its text layer.

`{"document": "name.pdf", "text": text layer}`
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.building.questions import asked
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

TEXT_PROMPT = "Write out the text of the document."


def matches(record: object) -> bool:
    """`document`, which names a PDF file, and `text` if anything stands beside it."""
    if not isinstance(record, dict) or not isinstance(record.get("document"), str):
        return False
    return record["document"].lower().endswith(".pdf") and ("text" in record or len(record) == 1)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one document of a record; where its text layer is empty so is the answer, which the rules reject.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    name = fields.text(fields.required(source, "document", "the record"), "document")
    if not name:
        raise RecordError("bad_schema", "document is empty")
    text = fields.turn_text(source, "text", "assistant", "the record") if "text" in source else None
    meta, repairs = media_bytes.rest(source, ("document", "text"))
    document, accepted = MediaReference("document", name), [text] if text else []
    yield asked([document], TEXT_PROMPT, text, references=accepted, meta=meta, repairs=repairs)


FORMAT = Format(
    name="pdf-folder",
    title="A folder of PDF files, to write out their text",
    schema='a folder of .pdf files, or records {"document": NAME.pdf, "text": TEXT}',
    example={"document": "letters/1.pdf", "text": "Dear Anna,\nthe parcel has arrived.\n"},
    traps=(
        "the answer is the text layer of the PDF, which need not be what its pages show",
        "a PDF of scanned pages alone has no text layer and is empty_answer",
    ),
    keys=frozenset({"document", "text"}),
    matches=matches,
    convert=convert,
)
