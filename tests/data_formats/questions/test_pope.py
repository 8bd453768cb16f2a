"""Yes-or-no questions of POPE, whose files are JSON Lines, and of MME, whose files are lines with tabs."""

from pathlib import PurePath

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.format import Context
from aria_finetune.data_formats.questions.pope import FORMATS, MME, POPE
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

RECORD = {"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "text": "Is there a dog?", "label": "yes"}
LINE = "42.jpg\tIs there a dog?\tYes"


def messages(answer):
    return (
        Message("user", (Part("image", media=0), Part("text", text="Is there a dog?"))),
        Message("assistant", (Part("text", text=answer),)),
    )


def test_a_record_of_pope():
    assert drafts(POPE, RECORD | {"category": "random"}) == [
        Draft(
            messages=messages("yes"),
            media=(image_names.named(RECORD["image"]),),
            references=("yes",),
            meta={"question_id": 1, "category": "random"},
        )
    ]
    assert "val2014/COCO_val2014_000000000042.jpg" in drafts(POPE, RECORD)[0].media[0].alternatives


def test_a_row_of_pope_that_holds_its_image():
    (draft,) = drafts(POPE, RECORD | {"image": b"jpg"})
    assert draft.media == (MediaReference("image", "image", content=b"jpg"),)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": None}, "empty_answer"),
        ({"label": ""}, "empty_answer"),
        ({"label": 1}, "bad_schema"),
        ({"text": None}, "bad_schema"),
        ({"image": ""}, "bad_schema"),
        ({"image": None}, "bad_schema"),
        ({"image": "\udcff.jpg"}, "bad_text"),
    ],
)
def test_bad_records_of_pope(change, reason):
    assert reasons(POPE, RECORD | change) == [reason]


def test_a_line_of_mme():
    context = Context(file=PurePath("eval/existence.txt"))
    assert drafts(MME, LINE, context=context) == [
        Draft(
            messages=messages("Yes"),
            media=(
                MediaReference(
                    "image",
                    "42.jpg",
                    alternatives=(
                        "images/42.jpg",
                        "existence/42.jpg",
                        "existence/images/42.jpg",
                        "images/existence/42.jpg",
                    ),
                ),
            ),
            references=("Yes",),
            meta={"category": "existence"},
        )
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("42.jpg\tIs there a dog?\t", "empty_answer"),
        ("42.jpg\tIs there a dog?", "bad_schema"),
        ("42.jpg\tIs there a dog?\tYes\tNo", "bad_schema"),
        ("\tIs there a dog?\tYes", "bad_schema"),
        ({}, "bad_schema"),
    ],
)
def test_bad_lines_of_mme(line, reason):
    assert reasons(MME, line) == [reason]


@pytest.mark.parametrize(("record", "name"), [(RECORD, "pope"), (RECORD | {"label": None}, "pope"), (LINE, "mme")])
def test_detection(record, name):
    assert registry.detect([record], FORMATS).name == name


@pytest.mark.parametrize(
    "record",
    [
        {"question_id": 1, "image": "a.jpg", "text": "q"},
        RECORD | {"label": True},
        RECORD | {"rejected": "no"},
        "42.jpg#0\ta dog",
        "42.jpg\ta dog",
        "id\tIs there?\tYes",
        "42.jpg\tq\tYes\tNo",
        [LINE],
        None,
    ],
)
def test_what_is_neither(record):
    assert not any(form.matches(record) for form in FORMATS)


@pytest.mark.parametrize("form", FORMATS)
def test_the_examples(form):
    assert registry.detect([form.example], FORMATS) is form
    assert len(drafts(form, form.example)) == 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(POPE.example), line=broken(MME.example))
def test_nothing_but_record_errors(record, line):
    check_robust(POPE, record)
    check_robust(MME, line)
