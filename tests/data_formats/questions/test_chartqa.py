"""ChartQA's questions, from its files and from rows that hold the chart."""

from pathlib import PurePath

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.format import Context
from aria_finetune.data_formats.questions.chartqa import FORMAT
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

RECORD = {"imgname": "12.png", "query": "Which year?", "label": "2014"}


def test_a_record():
    assert drafts(FORMAT, RECORD | {"type": "human"}, context=Context(file=PurePath("x/train_human.json"))) == [
        Draft(
            messages=(
                Message("user", (Part("image", media=0), Part("text", text="Which year?"))),
                Message("assistant", (Part("text", text="2014"),)),
            ),
            media=(
                MediaReference("image", "12.png", alternatives=("png/12.png", "images/12.png", "train/png/12.png")),
            ),
            references=("2014",),
            meta={"type": "human"},
        )
    ]


def test_a_row_that_holds_its_chart():
    row = {"image": {"bytes": b"png", "path": None}, "query": "Which year?", "label": ["2014", "14"], "machine": 1}
    (draft,) = drafts(FORMAT, row)
    assert draft.media == (MediaReference("image", "image", content=b"png"),)
    assert draft.messages[1].content == (Part("text", text="2014"),)
    assert draft.references == ("2014", "14")
    assert draft.meta == {"machine": 1}


def test_a_number_becomes_text_and_is_counted():
    (draft,) = drafts(FORMAT, RECORD | {"label": 0.5})
    assert draft.references == ("0.5",)
    assert draft.repairs == ("number_as_text",)


def test_a_replacement_character_is_data():
    (draft,) = drafts(FORMAT, RECORD | {"query": "Caf\ufffd?", "label": "\ufffd"})
    assert draft.messages[0].content[1].text == "Caf\ufffd?"
    assert draft.references == ("\ufffd",)


def test_a_record_without_a_label_is_for_evaluation():
    assert reasons(FORMAT, {"imgname": "12.png", "query": "Which?"}, RECORD | {"label": ""}) == ["empty_answer"] * 2


@pytest.mark.parametrize(
    "record",
    [
        RECORD | {"imgname": ""},
        RECORD | {"imgname": 12},
        RECORD | {"query": None},
        RECORD | {"label": False},
        {"query": "q", "label": "a"},
        {"query": "q", "label": "a", "image": None},
        "text",
    ],
)
def test_bad_records(record):
    assert reasons(FORMAT, record) == ["bad_schema"]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (RECORD, True),
        ({"imgname": "a", "query": "q"}, True),
        ({"image": None, "query": "q", "label": []}, True),
        ({"image": "a.png", "query": "q", "response": "a"}, False),
        ({"query": "q", "label": "a"}, False),
        (["imgname", "query"], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT,)) is FORMAT
    assert [draft.references for draft in drafts(FORMAT, FORMAT.example)] == [("2014",)]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
