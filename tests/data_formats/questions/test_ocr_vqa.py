"""Pages with the words that were read on them, and several questions each."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.questions.ocr_vqa import COORDINATES, FORMAT
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

PAGE = {"image_id": "letter_1", "context": "May 3", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}
QA = {"question": "When?", "answers": ["May 3", "3 May"]}


def test_one_conversation_for_every_question():
    first, second = drafts(FORMAT, PAGE | {"qas": [QA | {"question_id": 1}, {"question": "Who?", "answer": "Ann"}]})
    shared = PAGE | {"coordinates": COORDINATES}
    image = image_names.named("letter_1", "documents/")
    assert first == Draft(
        messages=(
            Message("user", (Part("image", media=0), Part("text", text="When?"))),
            Message("assistant", (Part("text", text="May 3"),)),
        ),
        media=(image,),
        references=("May 3", "3 May"),
        meta=shared | {"qa": {"question_id": 1}},
    )
    assert second.media == (image,)
    assert second.references == ("Ann",)
    assert second.meta == shared


def test_answers_with_their_places_are_kept():
    answers = [{"text": "May 3", "answer_start": 6}]
    (draft,) = drafts(FORMAT, PAGE | {"qas": [{"question": "When?", "answers": answers}]})
    assert draft.references == ("May 3",)
    assert draft.meta["qa"] == {"answers": answers}


def test_a_row_may_hold_its_page():
    (draft,) = drafts(FORMAT, PAGE | {"image": {"bytes": b"png", "path": "p.png"}, "thumbnail": b"x", "qas": [QA]})
    assert draft.media == (MediaReference("image", "p.png", content=b"png"),)
    assert draft.repairs == ("bytes_dropped",)


@pytest.mark.parametrize("entry", [{"question": "When?"}, {"question": "When?", "answers": [], "is_impossible": True}])
def test_a_question_without_an_answer_is_for_evaluation(entry):
    assert reasons(FORMAT, PAGE | {"qas": [entry, QA]}) == ["empty_answer", None]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"answers": ["a"]},
        {"question": 3, "answers": ["a"]},
        {"question": "q", "answers": [None]},
        {"question": "q", "answers": ["a"], "answer": "a"},
    ],
)
def test_a_bad_question_leaves_its_neighbour_alone(entry):
    assert reasons(FORMAT, PAGE | {"qas": [entry, QA]}) == ["bad_schema", None]


@pytest.mark.parametrize(
    "record",
    [PAGE, PAGE | {"qas": None}, PAGE | {"qas": []}, {"qas": [QA]}, PAGE | {"image_id": None, "qas": [QA, QA]}, "text"],
)
def test_a_bad_page_is_one_bad_record(record):
    assert reasons(FORMAT, record) == ["bad_schema"]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (PAGE | {"qas": []}, True),
        ({"qas": [], "image_id": 1, "boxes": None}, True),
        ({"qas": [], "context": "", "title": ""}, False),
        ({"qas": [], "image_id": 1}, False),
        (PAGE, False),
        ([], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT,)) is FORMAT
    assert [draft.references for draft in drafts(FORMAT, FORMAT.example)] == [("May 3, 1990", "3 May 1990")]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
