"""Questions about PDF files and slides, and folders of PDF files, against conversations written by hand."""

import pytest

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.documents import pdf_folder, pdf_questions
from aria_finetune.data_formats.documents.pdf_questions import MMLONGBENCH_DOC, SLIDEVQA
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

FORMATS = (*pdf_questions.FORMATS, pdf_folder.FORMAT)


def text(content):
    return Part("text", text=content)


def convert(form, record, **options):
    (draft,) = form.convert(record)
    return checked(draft, **options)


def asked(**changes):
    record = {"doc_id": "a.pdf", "question": "How many?", "answer": "6", "evidence_pages": "[15, 16]", **changes}
    return {key: value for key, value in record.items() if value is not ...}


class TestMMLongBenchDoc:
    def test_a_question(self):
        record = asked(evidence_sources="['Table']", answer_format="Int")
        assert convert(MMLONGBENCH_DOC, record) == Draft(
            messages=(
                Message("user", (Part("document", media=0), text("How many?"))),
                Message("assistant", (text("6"),)),
            ),
            media=(MediaReference("document", "documents/a.pdf", alternatives=("a.pdf",)),),
            references=("6",),
            meta={
                "doc_id": "a.pdf",
                "evidence_pages": [15, 16],
                "evidence_sources": "['Table']",
                "answer_format": "Int",
            },
        )

    @pytest.mark.parametrize("answer", ["Not answerable", "['Ann', 'Ben']", "0"])
    def test_answers_stay_as_they_are(self, answer):
        draft = convert(MMLONGBENCH_DOC, asked(answer=answer))
        assert draft.messages[1].content == (text(answer),)
        assert draft.references == (answer,)

    @pytest.mark.parametrize(
        ("given", "pages"),
        [("[]", []), ("[5]", [5]), (" [1,  2] ", [1, 2]), ([3], [3]), ([], []), (None, None)],
    )
    def test_evidence_pages(self, given, pages):
        assert convert(MMLONGBENCH_DOC, asked(evidence_pages=given)).meta["evidence_pages"] == pages

    def test_a_question_without_an_answer_is_for_evaluation(self):
        assert len(convert(MMLONGBENCH_DOC, asked(answer=...), evaluation=True).messages) == 1
        with pytest.raises(RecordError, match="empty_answer"):
            convert(MMLONGBENCH_DOC, asked(answer=...))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"evidence_pages": "5"}, "bad_schema"),
            ({"evidence_pages": "[0]"}, "bad_schema"),
            ({"evidence_pages": "['1']"}, "bad_schema"),
            ({"evidence_pages": "[1.0]"}, "bad_schema"),
            ({"evidence_pages": "[true]"}, "bad_schema"),
            ({"evidence_pages": "[1"}, "bad_schema"),
            ({"evidence_pages": "__import__('os')"}, "bad_schema"),
            ({"evidence_pages": "[NaN]"}, "bad_schema"),
            ({"evidence_pages": 5}, "bad_schema"),
            ({"doc_id": 5}, "bad_schema"),
            ({"doc_id": ""}, "bad_schema"),
            ({"doc_id": ...}, "bad_schema"),
            ({"question": None}, "bad_schema"),
            ({"question": ...}, "bad_schema"),
            ({"answer": 6}, "bad_schema"),
            ({"answer": None}, "empty_answer"),
            ({"answer": ""}, "empty_answer"),
            ({"answer": "\udc80"}, "bad_text"),
        ],
    )
    def test_bad_records(self, changes, reason):
        with pytest.raises(RecordError) as caught:
            convert(MMLONGBENCH_DOC, asked(**changes))
        assert caught.value.reason == reason


def deck(**changes):
    record = {"deck_name": "tea", "question": "When?", "answer": "2014", "evidence_pages": [2], **changes}
    return {key: value for key, value in record.items() if value is not ...}


class TestSlideVQA:
    def test_slides_by_url(self):
        record = deck(image_urls=["https://host/x/1-728.jpg?cb=1", "https://host/x/2-728.jpg"], qa_id=4)
        draft = convert(SLIDEVQA, record)
        assert draft.messages[0].content == (Part("image", media=0), Part("image", media=1), text("When?"))
        assert draft.messages[1].content == (text("2014"),)
        assert draft.media[0] == MediaReference(
            "image",
            "https://host/x/1-728.jpg?cb=1",
            alternatives=(
                "images/train/tea/1-728.jpg",
                "images/dev/tea/1-728.jpg",
                "images/test/tea/1-728.jpg",
                "tea/1-728.jpg",
            ),
        )
        assert draft.media[1].reference == "https://host/x/2-728.jpg"
        assert draft.meta == {"deck_name": "tea", "evidence_pages": [2], "qa_id": 4}
        assert draft.references == ("2014",)

    def test_slides_in_the_row_are_in_the_order_of_their_numbers(self):
        pages = {f"page_{number}": {"bytes": b"%d" % number, "path": None} for number in (1, 10, 2, 11, 9)}
        draft = convert(SLIDEVQA, deck(**pages, page_12=None, page_count=5, image_urls=["a"]))
        assert [medium.content for medium in draft.media] == [b"1", b"2", b"9", b"10", b"11"]
        assert [medium.reference for medium in draft.media][:2] == ["page_1", "page_2"]
        assert draft.meta == {"deck_name": "tea", "evidence_pages": [2], "page_count": 5, "image_urls": ["a"]}

    def test_an_address_without_a_name_has_no_alternatives(self):
        record = deck(image_urls=["https://host/", "https://[/1.jpg"])
        assert [medium.alternatives for medium in convert(SLIDEVQA, record).media] == [(), ()]

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"image_urls": []},
            {"image_urls": "https://host/1.jpg"},
            {"image_urls": [None]},
            {"image_urls": [""]},
            {"page_1": None, "page_2": None},
            {"page_1": 5},
            {"image_urls": ["a"], "deck_name": 5},
            {"image_urls": ["a"], "question": ...},
            {"image_urls": ["a"], "evidence_pages": "[2"},
        ],
    )
    def test_bad_records(self, changes):
        with pytest.raises(RecordError) as caught:
            convert(SLIDEVQA, deck(**changes))
        assert caught.value.reason == "bad_schema"


class TestFolder:
    def test_a_document_and_its_text(self):
        draft = convert(pdf_folder.FORMAT, {"document": "in/a.PDF", "text": " Two\nlines\n", "pages": 1})
        assert draft == Draft(
            messages=(
                Message("user", (Part("document", media=0), text("Write out the text of the document."))),
                Message("assistant", (text(" Two\nlines\n"),)),
            ),
            media=(MediaReference("document", "in/a.PDF"),),
            references=(" Two\nlines\n",),
            meta={"pages": 1},
        )

    @pytest.mark.parametrize("layer", ["", "\n\n ", None])
    def test_without_a_text_layer_there_is_no_answer(self, layer):
        record = {"document": "a.pdf", "text": layer}
        with pytest.raises(RecordError, match="empty_answer"):
            convert(pdf_folder.FORMAT, record)
        assert len(convert(pdf_folder.FORMAT, record, evaluation=True).messages) == 1

    def test_a_name_alone_is_for_evaluation(self):
        assert len(convert(pdf_folder.FORMAT, {"document": "a.pdf"}, evaluation=True).messages) == 1
        with pytest.raises(RecordError, match="empty_answer"):
            convert(pdf_folder.FORMAT, {"document": "a.pdf"})

    @pytest.mark.parametrize("record", [{"text": "a"}, {"document": 5, "text": "a"}, {"document": "", "text": "a"}, 5])
    def test_bad_records(self, record):
        with pytest.raises(RecordError) as caught:
            convert(pdf_folder.FORMAT, record)
        assert caught.value.reason == "bad_schema"


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"doc_id": "a.pdf", "question": None}, "mmlongbench-doc"),
        ({"doc_id": "a.PDF", "question": "What?"}, "mmlongbench-doc"),
        ({"doc_id": None, "question": "What?", "evidence_pages": "[]"}, "mmlongbench-doc"),
        ({"deck_name": "tea", "question": "What?", "image_urls": None}, "slidevqa"),
        ({"deck_name": "tea", "question": "What?", "page_1": None}, "slidevqa"),
        ({"deck_name": "tea", "question": "What?", "evidence_pages": []}, "slidevqa"),
        ({"document": "a.pdf", "text": None}, "pdf-folder"),
        ({"document": "a.pdf"}, "pdf-folder"),
        ({"document": "a.Pdf", "text": "a", "title": "b"}, "pdf-folder"),
    ],
)
def test_a_record_is_recognised(record, name):
    assert registry.detect([record], FORMATS).name == name


@pytest.mark.parametrize(
    "record",
    [
        {"doc_id": "a.pdf"},
        {"doc_id": "ffbf0227", "question": "What?"},
        {"deck_name": "tea", "image_urls": [], "bboxes": []},
        {"deck_name": "tea", "question": "What?", "page_x": 1},
        {"document": "a long text", "text": "a"},
        {"document": "a.pdf", "question": "What?", "answer": "That."},
        {"document": None, "text": "a"},
        [],
        None,
    ],
)
def test_other_records_are_not(record):
    assert not any(form.matches(record) for form in FORMATS)
