"""RefCOCO: the box as the source gives it, and beside it as Aria writes boxes."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.questions.refcoco import FORMAT
from aria_finetune.data_formats.record import Draft, Message, Part

RECORD = {
    "img_id": "COCO_train2014_000000000042_3",
    "sents": "the dog",
    "bbox": [64.0, 120.5, 160.0, 240.0],
    "height": 480,
    "width": 640,
}


def test_a_record():
    assert drafts(FORMAT, RECORD) == [
        Draft(
            messages=(
                Message("user", (Part("image", media=0), Part("text", text="the dog"))),
                Message("assistant", (Part("text", text="[64.0, 120.5, 160.0, 240.0]"),)),
            ),
            media=(image_names.coco(42, "train2014"),),
            references=("[64.0, 120.5, 160.0, 240.0]",),
            meta={
                "img_id": "COCO_train2014_000000000042_3",
                "bbox": [64.0, 120.5, 160.0, 240.0],
                "height": 480,
                "width": 640,
                "coordinates": "xywh pixels",
                # 64 / 640 = 0.1, 120.5 / 480 = 0.251, 224 / 640 = 0.35, 360.5 / 480 = 0.751; each times 999
                "aria_box": "(100,251),(350,750)",
                "aria_coordinates": "(x1,y1),(x2,y2), 0-999 of width and height",
            },
        )
    ]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("COCO_train2014_000000000042_3", "COCO_train2014_000000000042.jpg"),
        ("COCO_val2014_000000000042", "COCO_val2014_000000000042.jpg"),
        (42, "COCO_train2014_000000000042.jpg"),
        ("street_3", "street_3"),
    ],
)
def test_the_number_of_the_thing_is_no_part_of_the_file(name, reference):
    (draft,) = drafts(FORMAT, RECORD | {"img_id": name})
    assert draft.media[0].reference == reference
    assert draft.meta["img_id"] == name


def test_every_expression_is_a_conversation():
    source = RECORD | {"sents": ["the dog", 3, "left one"]}
    assert reasons(FORMAT, source) == [None, "bad_schema", None]
    found = drafts(FORMAT, RECORD | {"sents": ["the dog", "left one"]})
    assert [draft.messages[0].content[1].text for draft in found] == ["the dog", "left one"]


@pytest.mark.parametrize(
    ("box", "written", "repairs"),
    [
        ([0, 0, 640, 480], "(0,0),(999,999)", ()),
        ([0, 0, 640.2, 480], "(0,0),(999,999)", ()),
        ([-10, 0, 100, 480], "(0,0),(140,999)", ("box_outside_image",)),
        ([600, 0, 100, 480], "(937,0),(999,999)", ("box_outside_image",)),
    ],
)
def test_a_box_at_the_border(box, written, repairs):
    (draft,) = drafts(FORMAT, RECORD | {"bbox": box})
    assert draft.meta["aria_box"] == written
    assert draft.repairs == repairs


@pytest.mark.parametrize("size", [{}, {"width": 640}, {"width": 0, "height": 480}, {"width": "640", "height": 480}])
def test_without_the_size_there_is_no_second_form(size):
    source = {key: RECORD[key] for key in ("img_id", "sents", "bbox")} | size
    (draft,) = drafts(FORMAT, source)
    assert "aria_box" not in draft.meta
    assert draft.meta["coordinates"] == "xywh pixels"


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": None},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, "4"]},
        {"bbox": [1, 2, 3, True]},
        {"bbox": [1, 2, 3, 10**400]},
        {"sents": None},
        {"sents": []},
        {"img_id": None},
        {"img_id": ""},
    ],
)
def test_bad_records(change):
    assert reasons(FORMAT, RECORD | change) == ["bad_schema"]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (RECORD, True),
        ({"img_id": 1, "sents": [], "bbox": None}, True),
        ({"image": "a.jpg", "bbox": [], "question": "q"}, False),
        (None, False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT,)) is FORMAT
    assert [draft.meta["aria_box"] for draft in drafts(FORMAT, FORMAT.example)] == ["(100,250),(350,749)"]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
