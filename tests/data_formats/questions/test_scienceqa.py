"""ScienceQA: options, hints and images of problems that stand in one object by their numbers."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.format import Context, Settings
from aria_finetune.data_formats.questions.image_qa import FORMAT as IMAGE_QA
from aria_finetune.data_formats.questions.scienceqa import FORMAT
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

PROBLEM = {"question": "Which?", "choices": ["the dog", "the hen"], "answer": 1}
(COMPANION,) = FORMAT.companions


def text(content):
    return Part("text", text=content)


def test_a_problem_of_every_part():
    problem = PROBLEM | {
        "hint": "Look at the beak.",
        "image": "image.png",
        "lecture": "Birds lay eggs.",
        "solution": "A hen is a bird.",
        "split": "val",
        "grade": "grade2",
    }
    assert drafts(FORMAT, {"17": problem}) == [
        Draft(
            messages=(
                Message(
                    "user",
                    (Part("image", media=0), text("Hint: Look at the beak.\nWhich?\nA. the dog\nB. the hen")),
                ),
                Message("assistant", (text("B. the hen"),)),
            ),
            media=(
                MediaReference(
                    "image",
                    "images/val/17/image.png",
                    alternatives=("val/17/image.png", "images/17/image.png", "17/image.png"),
                ),
            ),
            references=("B", "the hen", "B. the hen"),
            meta={
                "pid": "17",
                "lecture": "Birds lay eggs.",
                "solution": "A hen is a bird.",
                "split": "val",
                "grade": "grade2",
            },
        )
    ]


@pytest.mark.parametrize(("wording", "written"), [("letter", "B"), ("text", "the hen")])
def test_the_answer_as_it_is_wanted(wording, written):
    (draft,) = drafts(FORMAT, {"17": PROBLEM}, context=Context(settings=Settings(answers=wording)))
    assert draft.messages[1].content == (text(written),)
    assert draft.references == ("B", "the hen", "B. the hen")


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": ""}])
def test_problems_without_an_image_are_text(image):
    (draft,) = drafts(FORMAT, {"17": PROBLEM | image | {"hint": ""}})
    assert draft.media == ()
    assert draft.messages[0].content == (text("Which?\nA. the dog\nB. the hen"),)


def test_the_split_of_pid_splits():
    table = COMPANION.build(iter([{"train": ["1"], "val": [], "test": [17], "minival": ["1"]}]))
    source = {pid: PROBLEM | {"image": "image.png"} for pid in ("1", "17", "3")}
    found = drafts(FORMAT, source, context=Context(tables={"splits": table}))
    assert [draft.media[0].reference for draft in found[:2]] == ["images/train/1/image.png", "images/test/17/image.png"]
    assert {f"images/{split}/3/image.png" for split in ("val", "test")} <= set(found[2].media[0].alternatives)


def test_pid_splits_is_found_beside_the_source():
    assert COMPANION.find(["problems.json", "pid_splits.json"], "problems.json") == "pid_splits.json"
    assert COMPANION.find(["problems.json"], "problems.json") is None
    assert COMPANION.fits({"train": []})
    assert not COMPANION.fits({"17": PROBLEM})


def test_a_row_that_holds_its_image():
    row = PROBLEM | {"image": {"bytes": b"png", "path": None}, "hint": None, "lecture": "", "solution": ""}
    assert registry.detect([row, row | {"image": None}], (FORMAT, IMAGE_QA)) is FORMAT
    (draft,) = drafts(FORMAT, row)
    assert draft.media == (MediaReference("image", "image", content=b"png"),)
    assert draft.meta == {"lecture": "", "solution": ""}


@pytest.mark.parametrize(
    ("problem", "asked", "answer", "references"),
    [
        ({"choices": None, "answer": "1.2"}, "Which?", "1.2", ("1.2",)),
        ({"choices": ["yes", "no"], "answer": "no"}, "Which?\nA. yes\nB. no", "B. no", ("B", "no", "B. no")),
    ],
)
def test_problems_of_mathvista(problem, asked, answer, references):
    (draft,) = drafts(FORMAT, {"1": {"question": "Which?", "image": "images/1.jpg", **problem}})
    assert draft.media == (MediaReference("image", "images/1.jpg"),)
    assert draft.messages[0].content[1] == text(asked)
    assert draft.messages[1].content == (text(answer),)
    assert draft.references == references


@pytest.mark.parametrize("answer", [{}, {"answer": None}])
def test_a_problem_without_an_answer_is_for_evaluation(answer):
    problem = {"question": "Which?", "choices": ["a"], **answer}
    assert reasons(FORMAT, {"1": problem, "2": PROBLEM}) == ["empty_answer", None]


@pytest.mark.parametrize(
    "problem",
    [
        PROBLEM | {"answer": 2},
        PROBLEM | {"answer": -1},
        PROBLEM | {"answer": True},
        PROBLEM | {"answer": 0.0},
        PROBLEM | {"answer": "a fish"},
        PROBLEM | {"choices": "the dog"},
        PROBLEM | {"choices": ["the dog", 3]},
        PROBLEM | {"choices": ["x"] * 27},
        PROBLEM | {"question": None},
        PROBLEM | {"hint": 3},
        PROBLEM | {"image": 3},
        PROBLEM | {"split": 3},
        {"question": "Which?"},
        None,
    ],
)
def test_a_bad_problem_leaves_its_neighbour_alone(problem):
    assert reasons(FORMAT, {"1": problem, "2": PROBLEM}) == ["bad_schema", None]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"1": PROBLEM, "2": PROBLEM}, True),
        ({"1": PROBLEM | {"choices": None}}, True),
        (PROBLEM | {"lecture": ""}, True),
        (PROBLEM, False),
        ({"1": PROBLEM, "2": {"question": "q"}}, False),
        ({"1": PROBLEM, "info": "x"}, False),
        ({}, False),
        ([PROBLEM], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT, IMAGE_QA)) is FORMAT
    assert [draft.references for draft in drafts(FORMAT, FORMAT.example)] == [("B", "the hen", "B. the hen")]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
