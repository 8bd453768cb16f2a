"""Where an image is looked for that a record names without its folder or ending."""

import pytest

from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.errors import RecordError


def places(medium):
    assert medium.kind == "image"
    assert medium.content is None
    return [medium.reference, *medium.alternatives]


def test_a_name_is_looked_for_in_folders_too():
    assert places(image_names.named("x/a.PNG", "train/")) == ["x/a.PNG", "images/x/a.PNG", "train/x/a.PNG"]


def test_a_stem_is_looked_for_with_endings():
    assert places(image_names.named("00a1.b2")) == [
        "00a1.b2",
        "00a1.b2.jpg",
        "00a1.b2.png",
        "00a1.b2.jpeg",
        "images/00a1.b2",
        "images/00a1.b2.jpg",
        "images/00a1.b2.png",
        "images/00a1.b2.jpeg",
    ]


def test_a_coco_name_is_looked_for_in_the_folder_of_its_split():
    name = "COCO_train2014_000000000042.jpg"
    assert places(image_names.named(name)) == [
        name,
        f"images/{name}",
        f"train2014/{name}",
        f"images/train2014/{name}",
    ]
    assert places(image_names.named(f"coco/{name}")) == [
        f"coco/{name}",
        f"images/coco/{name}",
        f"train2014/{name}",
        f"images/train2014/{name}",
        name,
        f"images/{name}",
    ]


@pytest.mark.parametrize("name", ["/data/a.jpg", "https://example.org/a", "data:image/png;base64,AAAA"])
def test_what_has_its_place_is_not_looked_for_elsewhere(name):
    assert places(image_names.named(name)) == [name]


@pytest.mark.parametrize(
    ("hints", "first"),
    [
        ((), "COCO_val2014_000000000042.jpg"),
        (("None", "questions.json"), "COCO_val2014_000000000042.jpg"),
        (("train2014", "v2_val2014_questions.json"), "COCO_train2014_000000000042.jpg"),
        (("None", "v2_OpenEnded_mscoco_test-dev2015_questions.json"), "COCO_test2015_000000000042.jpg"),
        (("captions_val2017.json",), "val2017/000000000042.jpg"),
    ],
)
def test_a_coco_number_is_looked_for_first_in_the_split_that_is_hinted_at(hints, first):
    found = places(image_names.coco(42, *hints))
    assert found[0] == first
    assert len(set(found)) == len(found)
    name = "COCO_val2014_000000000042.jpg"
    assert {name, f"val2014/{name}", f"images/val2014/{name}", f"images/{name}"} <= set(found)
    assert {"COCO_train2014_000000000042.jpg", "test2015/COCO_test2015_000000000042.jpg"} <= set(found)
    assert {"000000000042.jpg", "train2017/000000000042.jpg", "42.jpg", "images/42.png"} <= set(found)


@pytest.mark.parametrize("number", [-1, 10**12])
def test_numbers_that_coco_can_not_have(number):
    with pytest.raises(RecordError, match="bad_schema"):
        image_names.coco(number)


def test_an_id_is_a_number_or_a_name():
    assert image_names.of_id(42, "image_id", hints=("train2014",)) == image_names.coco(42, "train2014")
    assert image_names.of_id("42", "image_id", "train/") == image_names.named("42", "train/")


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (True, "image_id is true or false"),
        (4.2, "image_id is a number"),
        (None, "image_id is null"),
        ("", "the name of the image is empty"),
    ],
)
def test_what_is_no_id(value, detail):
    with pytest.raises(RecordError, match=f"bad_schema: {detail}"):
        image_names.of_id(value, "image_id")
