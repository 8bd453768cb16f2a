"""DUDE's questions about PDF documents against conversations written by hand."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.documents.dude import FORMAT
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

QUESTION = {
    "questionId": "q1", "question": "When?", "answers": ["5:40"], "answers_variants": ["5.40"],
    "answer_type": "extractive", "docId": "d1", "data_split": "train", "answers_page_bounding_boxes": [[]],
}  # fmt: skip


def document(*questions):
    return {"dataset_name": "DUDE", "dataset_version": "1.0.7", "data": list(questions)}


def test_a_question():
    kept = {key: QUESTION[key] for key in ("questionId", "answer_type", "docId", "data_split")}
    assert drafts(FORMAT, document(QUESTION)) == [
        Draft(
            messages=(
                Message("user", (Part("document", media=0), Part("text", text="When?"))),
                Message("assistant", (Part("text", text="5:40"),)),
            ),
            media=(MediaReference("document", "PDF/train/d1.pdf", alternatives=("train/d1.pdf", "d1.pdf")),),
            references=("5:40", "5.40"),
            meta=kept | {"answers_page_bounding_boxes": [[]]},
        )
    ]


@pytest.mark.parametrize(
    ("changes", "answer", "references"),
    [
        ({"answers": ["a", "b", "a"], "answers_variants": []}, "a", ("a", "b")),
        ({"answers": [], "answer_type": "not-answerable"}, "Not answerable", ("Not answerable", "5.40")),
        ({"answers": [""], "answer_type": "not-answerable", "answers_variants": None}, "Not answerable", ("Not answerable",)),
        ({"answers": ["red", "blue"], "answer_type": "list/extractive", "answers_variants": ["grey"]}, "red, blue", ("red, blue",)),
        ({"answers": ["", "b"], "answer_type": "abstractive", "answers_variants": [""]}, "b", ("b",)),
    ],
)  # fmt: skip
def test_answers(changes, answer, references):
    (draft,) = drafts(FORMAT, QUESTION | changes)
    assert draft.messages[1].content[0].text == answer
    assert draft.references == references


def test_a_bad_question_leaves_its_neighbours_alone():
    test = {key: QUESTION[key] for key in ("questionId", "question", "docId")} | {"data_split": "test"}
    bad = [
        QUESTION | {"docId": ""},
        QUESTION | {"question": None},
        QUESTION | {"answers": [True]},
        "q",
        QUESTION | {"data_split": 1},
    ]
    assert reasons(FORMAT, document(QUESTION, test, *bad)) == [None, "empty_answer", *["bad_schema"] * 5]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (document(QUESTION), True),
        (QUESTION, True),
        (document(), False),
        ({"data": [{"questionId": 1, "question": "q", "image": "a.png", "docId": 3, "answers": ["a"]}]}, False),
        (document(QUESTION | {"image": "documents/a_1.png"}), False),  # as DocVQA's are
        (QUESTION | {"image_local_name": "1.jpeg"}, False),
        ({"docId": "d", "question": "q"}, False),
        ([QUESTION], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found
    assert not found or registry.detect([record]) is FORMAT


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
