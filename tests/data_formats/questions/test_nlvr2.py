"""NLVR2: two images named by the identifier, and a sentence that is true or false of them."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.questions.nlvr2 import FORMAT
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

RECORD = {
    "identifier": "dev-850-0-1",
    "sentence": "Both show a dog.",
    "left_url": "https://example.org/l.jpg",
    "right_url": "https://example.org/r.jpg",
    "label": "False",
}


def image(number):
    name = f"dev-850-0-img{number}.png"
    return MediaReference("image", name, alternatives=(f"dev/{name}", f"images/dev/{name}", f"images/{name}"))


def test_a_record():
    assert drafts(FORMAT, RECORD) == [
        Draft(
            messages=(
                Message(
                    "user", (Part("image", media=0), Part("image", media=1), Part("text", text="Both show a dog."))
                ),
                Message("assistant", (Part("text", text="False"),)),
            ),
            media=(image(0), image(1)),
            references=("False",),
            meta={key: RECORD[key] for key in ("identifier", "left_url", "right_url")},
        )
    ]


@pytest.mark.parametrize(("label", "answer"), [("True", "True"), (True, "True"), (False, "False")])
def test_the_label_may_be_a_truth_value(label, answer):
    (draft,) = drafts(FORMAT, RECORD | {"label": label})
    assert draft.references == (answer,)


def test_images_of_the_training_set_lie_in_numbered_folders():
    (draft,) = drafts(FORMAT, RECORD | {"identifier": "train-10-0-0", "directory": 63})
    assert [medium.reference for medium in draft.media] == ["train-10-0-img0.png", "train-10-0-img1.png"]
    assert "images/train/63/train-10-0-img1.png" in draft.media[1].alternatives
    assert draft.meta["directory"] == 63


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": None}, "empty_answer"),
        ({"label": 1}, "bad_schema"),
        ({"sentence": None}, "bad_schema"),
        ({"identifier": "dev"}, "bad_schema"),
        ({"identifier": "-1"}, "bad_schema"),
        ({"identifier": 850}, "bad_schema"),
    ],
)
def test_bad_records(change, reason):
    assert reasons(FORMAT, RECORD | change) == [reason]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (RECORD, True),
        ({key: value for key, value in RECORD.items() if key != "label"}, True),
        ({"identifier": "1-0", "sentence": "s", "structured_rep": [], "label": "true"}, False),
        ("text", False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT,)) is FORMAT
    assert [draft.references for draft in drafts(FORMAT, FORMAT.example)] == [("False",)]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
