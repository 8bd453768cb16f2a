"""mmpretrain's lists of images and numbers of classes, which mean nothing without their names."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.captions.label_lists import FORMAT, PROMPT
from aria_finetune.data_formats.format import Context
from aria_finetune.data_formats.record import Draft, Message, Part

ENTRY = {"img_path": "images/1.jpg", "gt_label": 1}
(COMPANION,) = FORMAT.companions


def document(*entries, **info):
    return {"metainfo": info, "data_list": list(entries)}


def labels(*entries, context=Context(), **info):  # noqa: B008
    return [draft.references[0] for draft in drafts(FORMAT, document(*entries, **info), context=context)]


def beside(*records):
    return Context(tables={"classes": COMPANION.build(iter(records))})


def test_a_list():
    assert drafts(FORMAT, document(ENTRY | {"source": "x"}, classes=["cat", "dog"])) == [
        Draft(
            messages=(
                Message("user", (Part("image", media=0), Part("text", text=PROMPT))),
                Message("assistant", (Part("text", text="dog"),)),
            ),
            media=(image_names.named("images/1.jpg"),),
            references=("dog",),
            meta={"gt_label": 1, "source": "x"},
        )
    ]


@pytest.mark.parametrize(
    "info",
    [
        {"classes": ["cat", "dog"]},
        {"CLASSES": ["cat", "dog"]},
        {"categories": [{"id": 1, "category_name": "dog"}, {"id": 0, "category_name": "cat"}]},
        {"categories": [{"category_name": "cat"}, {"name": "dog"}]},
    ],
)
def test_names_in_the_file(info):
    assert labels(ENTRY, ENTRY | {"gt_label": [0, 1]}, **info) == ["dog", "cat, dog"]


@pytest.mark.parametrize(
    "records",
    [
        ("cat", "dog"),
        ({"classes": ["cat", "dog"]},),
        ({"0": "cat", "1": "dog"},),
        ({"id": 1, "name": "dog"}, {"id": 2}),
    ],
)
def test_names_in_a_file_beside_it(records):
    assert labels(ENTRY, context=beside(*records)) == ["dog"]


def test_names_in_the_file_come_first():
    assert labels(ENTRY, context=beside("a", "b"), classes=["cat", "dog"]) == ["dog"]


@pytest.mark.parametrize(
    ("label", "info"),
    [
        (1, {}),
        (2, {"classes": ["cat", "dog"]}),
        (-1, {"classes": ["cat", "dog"]}),
        ([0, 2], {"classes": ["cat", "dog"]}),
        (True, {"classes": ["cat", "dog"]}),
        (1.0, {"classes": ["cat", "dog"]}),
        ({"task": 1}, {"classes": ["cat", "dog"]}),
        (1, {"classes": ["cat", None]}),
        (1, {"classes": ["cat", ""]}),
        (1, {"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}),
        (1, {"classes": "cat"}),
    ],
)
def test_a_number_without_a_name_is_no_answer(label, info):
    assert reasons(FORMAT, document(ENTRY | {"gt_label": label}, **info)) == ["bad_schema"]


@pytest.mark.parametrize("label", [{}, {"gt_label": None}, {"gt_label": []}])
def test_an_image_without_a_label_is_for_evaluation(label):
    assert reasons(FORMAT, document({"img_path": "1.jpg", **label}, ENTRY, classes=["a", "b"])) == [
        "empty_answer",
        None,
    ]


@pytest.mark.parametrize("entry", [{"gt_label": 1}, ENTRY | {"img_path": ""}, ENTRY | {"img_path": 3}, "broken", None])
def test_a_bad_entry_leaves_its_neighbour_alone(entry):
    assert reasons(FORMAT, document(entry, ENTRY, classes=["a", "b"])) == ["bad_schema", None]


@pytest.mark.parametrize("record", [{}, {"data_list": 3}, "text", None])
def test_what_is_no_such_document(record):
    assert reasons(FORMAT, record) == ["bad_schema"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train.json", "classes.txt"], "classes.txt"),
        (["categories.json", "a.txt"], "categories.json"),
        (["a.txt"], None),
    ],
)
def test_the_file_of_names_is_found_beside_the_source(names, found):
    assert COMPANION.find(names, "train.json") == found


def test_what_a_file_of_names_is():
    assert COMPANION.fits("cat")
    assert COMPANION.fits({"0": "cat"})
    assert COMPANION.fits({"id": 1, "name": "cat"})
    assert COMPANION.fits({"classes": ["cat"]})
    assert not COMPANION.fits(["cat"])
    assert not COMPANION.fits(document(ENTRY))


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (document(ENTRY), True),
        ({"data_list": [ENTRY, None]}, True),
        (document(), False),
        (document({"img": "1.jpg"}), False),
        ([ENTRY], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT,)) is FORMAT
    assert [draft.references for draft in drafts(FORMAT, FORMAT.example)] == [("dog",)]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
