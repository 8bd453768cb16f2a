"""DUDE: questions about PDF documents of many pages, all splits in one file.

`{"data": [{"questionId", "question", "answers": [TEXT], "answers_variants": [TEXT], "answer_type", "docId",
"data_split"}]}`; the documents are `PDF/<data_split>/<docId>.pdf` (Van Landeghem et al. 2023, rrc.cvc.uab.es/?ch=23).
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import documents, fields, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

NOT_ANSWERABLE = "Not answerable"
"""The answer to a question whose document holds none, worded as MMLongBench-Doc does."""

_ASKED = frozenset({"docId", "question", "data_split"})
_IMAGES = frozenset({"image", "image_local_name"})


def matches(record: object) -> bool:
    """A list `data` of questions with `docId` and `data_split`, or one such question; with an image it is DocVQA's."""
    if not isinstance(record, dict):
        return False
    entries = record.get("data", [record])
    if not documents.is_list_of(entries, *_ASKED):
        return False
    return not any(isinstance(entry, dict) and _IMAGES & entry.keys() for entry in entries[: documents.SEEN_ENTRIES])


def unfold(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """Every question."""
    for record in records:
        if isinstance(record, dict) and isinstance(record.get("data"), list):
            yield from record["data"]
        else:
            yield record


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one question of a record, about the whole document.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    text = fields.text(fields.required(source, "question", "the record"), "question")
    given, repairs = questions.answers(source.get("answers"), "answers")
    others, notes = questions.answers(source.get("answers_variants"), "answers_variants")
    kind = fields.optional_text(source, "answer_type") or ""
    answer, accepted = _answer([word for word in given if word], kind)
    accepted = [*accepted, *(other for other in others if other and not kind.startswith("list"))]
    meta = fields.rest(source, ("question", "answers", "answers_variants"))
    yield questions.asked(
        [_document(source)], text, answer, references=tuple(dict.fromkeys(accepted)), meta=meta, repairs=repairs + notes
    )


def _answer(given: list[str], kind: str) -> tuple[str | None, list[str]]:
    """The answer trained on and those that are right; the entries of a list are one answer together."""
    if kind == "not-answerable":
        return NOT_ANSWERABLE, [NOT_ANSWERABLE]
    if not given:
        return None, []
    if kind.startswith("list"):
        whole = ", ".join(given)
        return whole, [whole]
    return given[0], given


def _document(source: dict[str, object]) -> MediaReference:
    name = fields.text(fields.required(source, "docId", "the record"), "docId")
    split = fields.text(fields.required(source, "data_split", "the record"), "data_split")
    if not name or not split:
        raise RecordError("bad_schema", "docId or data_split is empty")
    file = f"{name}.pdf"
    return MediaReference("document", f"PDF/{split}/{file}", alternatives=(f"{split}/{file}", file))


FORMAT = Format(
    name="dude",
    title="DUDE, questions about PDF documents",
    schema=(
        '{"data": [{"questionId": ID, "question": TEXT, "answers": [TEXT], "answers_variants": [TEXT],\n'
        '           "answer_type": TEXT, "docId": ID, "data_split": "train" | "val" | "test"}]}'
    ),
    example={
        "dataset_name": "DUDE",
        "data": [
            {
                "questionId": "1f0a",
                "question": "When does the first bus leave?",
                "answers": ["5:40"],
                "answers_variants": ["5.40"],
                "answer_type": "extractive",
                "docId": "timetable",
                "data_split": "train",
            }
        ],
    },
    traps=(
        "the PDF files are looked for in PDF/<data_split>/, in <data_split>/ and beside the source",
        f"answer_type not-answerable has the answer {NOT_ANSWERABLE!r}",
        "of answer_type list/... the answers are parts of one, joined by commas; else the first is trained on, all are right",
        "one file holds all splits, and the questions of the test split have no answers: pick a split before converting",
    ),
    keys=frozenset(
        {"data", "dataset_name", "dataset_version", "questionId", "answer_type", "answers_variants", *_ASKED}
    ),
    matches=matches,
    convert=convert,
    unfold=unfold,
)
