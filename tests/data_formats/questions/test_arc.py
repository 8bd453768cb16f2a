"""ARC and its like in both of their forms against conversations written by hand."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.format import Context, Settings
from aria_finetune.data_formats.questions.arc import FORMAT
from aria_finetune.data_formats.record import Draft, Message, Part

ROW = {"id": "x1", "question": "Which?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "answerKey": "2"}
FILE = {
    "id": "x1",
    "question": {"stem": "Which?", "choices": [{"text": "red", "label": "A"}, {"text": "blue", "label": "B"}]},
    "answerKey": "B",
}


@pytest.mark.parametrize("record", [ROW, FILE])
@pytest.mark.parametrize(("answers", "said"), [("both", "B. blue"), ("letter", "B"), ("text", "blue")])
def test_a_question(record, answers, said):
    assert drafts(FORMAT, record, context=Context(settings=Settings(answers=answers))) == [
        Draft(
            messages=(
                Message("user", (Part("text", text="Which?\nA. red\nB. blue"),)),
                Message("assistant", (Part("text", text=said),)),
            ),
            references=("B", "blue", "B. blue"),
            meta={"id": "x1"},
        )
    ]


def test_openbookqa_calls_its_question_otherwise():
    row = {key: value for key, value in ROW.items() if key != "question"} | {"question_stem": "Which?"}
    assert drafts(FORMAT, row) == drafts(FORMAT, ROW)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (ROW | {"answerKey": ""}, "empty_answer"),
        (ROW | {"answerKey": None}, "empty_answer"),
        (ROW | {"answerKey": "3"}, "bad_schema"),
        (ROW | {"answerKey": ["2"]}, "bad_schema"),
        (ROW | {"choices": {"text": ["red"], "label": ["1", "2"]}}, "bad_schema"),
        (ROW | {"choices": {"text": ["red", "blue"], "label": ["2", "2"]}}, "bad_schema"),
        (ROW | {"choices": {"text": ["red", 3], "label": ["1", "2"]}}, "bad_schema"),
        (ROW | {"choices": {"text": [], "label": []}}, "bad_schema"),
        (ROW | {"question": None}, "bad_schema"),
        (FILE | {"question": {"stem": "Which?", "choices": ["red"]}}, "bad_schema"),
        (FILE | {"question": {"stem": "Which?", "choices": None}}, "bad_schema"),
    ],
)
def test_bad_records(record, reason):
    assert reasons(FORMAT, record) == [reason]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (ROW, True),
        (FILE, True),
        (ROW | {"image": "a.jpg"}, False),
        ({"question": "Which?", "choices": ["red", "blue"], "answer": 1}, False),
        ({"choices": ROW["choices"], "answerKey": "2"}, False),
        ([], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found
    assert not found or registry.detect([record]) is FORMAT


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example) | broken(FILE))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
