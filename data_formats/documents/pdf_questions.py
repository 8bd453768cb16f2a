"""Questions about documents of many pages: MMLongBench-Doc asks about PDF files, SlideVQA about decks of slides."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from aria_finetune.data_formats.building import fields, media_bytes, media_fields, strict_json
from aria_finetune.data_formats.building.questions import asked
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_PAGE_KEY = re.compile(r"page_([0-9]{1,4})")
_SPLITS = ("train", "dev", "test")


def matches_mmlongbench(record: object) -> bool:
    """A question with `doc_id`, which ends in `.pdf` or has `evidence_pages` beside it."""
    if not isinstance(record, dict) or not {"doc_id", "question"} <= record.keys():
        return False
    name = record["doc_id"]
    return "evidence_pages" in record or (isinstance(name, str) and name.lower().endswith(".pdf"))


def convert_mmlongbench(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one question of a record, about the whole document.

    Raises:
        RecordError: `bad_schema`, also for `evidence_pages` that are no list of page numbers.
    """
    source = fields.mapping(record, "the record")
    name = fields.text(fields.required(source, "doc_id", "the record"), "doc_id")
    if not name:
        raise RecordError("bad_schema", "doc_id is empty")
    document = MediaReference("document", f"documents/{name}", alternatives=(name,))
    yield _asked([document], source, ("question", "answer"))


def matches_slidevqa(record: object) -> bool:
    """A question about a deck, `deck_name`, of `image_urls` or `page_1` and so on."""
    if not isinstance(record, dict) or not {"deck_name", "question"} <= record.keys():
        return False
    return not {"image_urls", "evidence_pages"}.isdisjoint(record) or any(map(_page_number, record))


def convert_slidevqa(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one question of a record, about all slides in order.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    pages = sorted((key for key in source if _page_number(key)), key=_page_number)
    slides = [media_fields.medium("image", source[key], key) for key in pages if source[key] is not None]
    known = ["question", "answer", *pages]
    if not slides:
        slides = _slides_of_urls(source)
        known.append("image_urls")
    yield _asked(slides, source, known)


def _asked(media: list[MediaReference], source: Mapping[str, Any], known: Sequence[str]) -> Draft:
    question = fields.text(fields.required(source, "question", "the record"), "question")
    answer = None
    if "answer" in source:
        answer = fields.turn_text(source, "answer", "assistant", "the record")
    meta, repairs = media_bytes.rest(source, known)
    if meta.get("evidence_pages") is not None:
        meta["evidence_pages"] = _page_numbers(meta["evidence_pages"])
    return asked(media, question, answer, references=[answer] if answer else (), meta=meta, repairs=repairs)


def _page_numbers(value: object) -> list[int]:
    """Page numbers counted from 1, in a list or in text that is one: `"[5, 6]"`."""
    if isinstance(value, str):
        try:
            value = strict_json.loads(value)
        except (json.JSONDecodeError, strict_json.StrictJSONError) as error:
            raise RecordError("bad_schema", "evidence_pages is text and no list of page numbers") from error
    pages = fields.array(value, "evidence_pages")
    if not all(isinstance(page, int) and not isinstance(page, bool) and page >= 1 for page in pages):
        raise RecordError("bad_schema", "evidence_pages holds something else than page numbers counted from 1")
    return pages


def _page_number(key: object) -> int:
    match = _PAGE_KEY.fullmatch(key) if isinstance(key, str) else None
    return int(match[1]) if match else 0


def _slides_of_urls(source: Mapping[str, Any]) -> list[MediaReference]:
    urls = fields.array(fields.required(source, "image_urls", "the record"), "image_urls")
    if not urls:
        raise RecordError("bad_schema", "image_urls is empty")
    deck = fields.text(fields.required(source, "deck_name", "the record"), "deck_name")
    return [_slide(url, deck, f"image_urls[{number}]") for number, url in enumerate(urls)]


def _slide(value: object, deck: str, where: str) -> MediaReference:
    url = fields.text(value, where)
    if not url:
        raise RecordError("bad_schema", f"{where} is empty")
    name = posixpath.basename(_path_of(url))
    if not name or not deck:
        return MediaReference("image", url)
    folders = [f"images/{split}/{deck}" for split in _SPLITS]
    return MediaReference("image", url, alternatives=tuple(f"{folder}/{name}" for folder in (*folders, deck)))


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


MMLONGBENCH_DOC = Format(
    name="mmlongbench-doc",
    title="MMLongBench-Doc, questions about PDF documents",
    schema=(
        '{"doc_id": NAME.pdf, "question": TEXT, "answer": TEXT,\n'
        ' "evidence_pages": "[5, 6]" | [NUMBER], "evidence_sources": TEXT, "answer_format": TEXT, "doc_type": TEXT}'
    ),
    example={
        "doc_id": "timetable.pdf",
        "doc_type": "Brochure",
        "question": "When does the first bus leave?",
        "answer": "5:40",
        "evidence_pages": "[2]",
        "evidence_sources": "['Table']",
        "answer_format": "Str",
    },
    traps=(
        "the PDF files are expected in documents/ or beside the source",
        "evidence_pages is a list written as text, with pages counted from 1; it is kept among the metadata",
        "the question is about the whole document, so all of its pages are shown, not only the evidence",
        '"Not answerable" is an answer; an answer that is a list stays the text it is',
    ),
    keys=frozenset({
        "doc_id", "doc_type", "question", "answer", "evidence_pages", "evidence_sources", "answer_format"
    }),
    matches=matches_mmlongbench,
    convert=convert_mmlongbench,
)  # fmt: skip

SLIDEVQA = Format(
    name="slidevqa",
    title="SlideVQA, questions about slide decks",
    schema=(
        '{"deck_name": NAME, "image_urls": [URL] | "page_1": IMAGE, "page_2": IMAGE, ...\n'
        ' "question": TEXT, "answer": TEXT, "evidence_pages": [NUMBER], "arithmetic_expression": TEXT}\n'
        'IMAGE: PATH | {"bytes": BYTES, "path": PATH}'
    ),
    example={
        "qa_id": 1,
        "deck_name": "coffee-market",
        "image_urls": ["https://example.org/deck/slide-1.jpg", "https://example.org/deck/slide-2.jpg"],
        "question": "In which year was the most coffee sold?",
        "answer": "2014",
        "evidence_pages": [2],
        "arithmetic_expression": "None",
    },
    traps=(
        "slides are URLs as published; downloaded ones are found as images/SPLIT/DECK/NAME or DECK/NAME",
        "every slide of the deck is shown; evidence_pages, counted from 1, are kept among the metadata",
        "the file of bounding boxes has no question and is another thing",
    ),
    keys=frozenset({
        "deck_name", "deck_url", "image_urls", "qa_id", "question", "answer", "arithmetic_expression", "evidence_pages",
        "reasoning_type", "answer_type",
    }),
    matches=matches_slidevqa,
    convert=convert_slidevqa,
)  # fmt: skip

FORMATS = (MMLONGBENCH_DOC, SLIDEVQA)
