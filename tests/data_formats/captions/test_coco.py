"""COCO's captions: annotation files, results of models, and Karpathy's splits."""

from pathlib import PurePath

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.captions.coco import ANNOTATIONS, FORMATS, KARPATHY, RESULTS
from aria_finetune.data_formats.format import Context
from aria_finetune.data_formats.record import Draft, Message, Part

NAME = "COCO_val2014_000000000042.jpg"
IMAGE = {"id": 42, "file_name": NAME, "width": 640, "height": 480, "license": 3}
CAPTION = {"id": 1, "image_id": 42, "caption": "A dog runs ."}
SENTENCES = {"filepath": "val2014", "filename": NAME, "split": "test", "cocoid": 42}


def document(images, annotations, **rest):
    return {"images": images, "annotations": annotations, **rest}


def captioned(caption, media, meta):
    return Draft(
        messages=(
            Message("user", (Part("image", media=0), Part("text", text="Describe the image."))),
            Message("assistant", (Part("text", text=caption),)),
        ),
        media=(media,),
        references=(caption,),
        meta=meta,
    )


def test_every_annotation_is_a_conversation():
    other = {"id": 43, "file_name": "train2014/b.jpg"}
    source = document(
        [IMAGE, other],
        [CAPTION, {"id": 2, "image_id": 43, "caption": "b"}, CAPTION | {"id": 3, "caption": "c"}],
        info={},
    )
    size = {"id": 42, "width": 640, "height": 480, "license": 3}
    assert drafts(ANNOTATIONS, source) == [
        captioned("A dog runs .", image_names.named(NAME), {"id": 1, "image_id": 42, "image": size}),
        captioned("b", image_names.named("train2014/b.jpg"), {"id": 2, "image_id": 43, "image": {"id": 43}}),
        captioned("c", image_names.named(NAME), {"id": 3, "image_id": 42, "image": size}),
    ]


def test_an_image_without_a_caption_is_for_evaluation():
    source = document([IMAGE, IMAGE | {"id": 43}], [CAPTION])
    assert reasons(ANNOTATIONS, source) == [None, "empty_answer"]
    *_, item = ANNOTATIONS.unfold(iter([source]), Context())
    (draft,) = ANNOTATIONS.convert(item, Context())
    assert [message.role for message in draft.messages] == ["user"]
    assert draft.meta["image"]["id"] == 43


@pytest.mark.parametrize(
    ("images", "annotation", "reason"),
    [
        ([IMAGE], CAPTION | {"image_id": 9}, "bad_schema"),
        ([IMAGE], CAPTION | {"image_id": None}, "bad_schema"),
        ([IMAGE, IMAGE | {"file_name": "b.jpg"}], CAPTION, "bad_schema"),
        ([{"id": 42, "file_name": ""}], CAPTION, "bad_schema"),
        ([{"id": 42, "file_name": None}], CAPTION, "bad_schema"),
        ([{"id": 42}], CAPTION, "bad_schema"),
        ([IMAGE], CAPTION | {"caption": None}, "bad_schema"),
        ([IMAGE], {"image_id": 42}, "bad_schema"),
        ([IMAGE], "broken", "bad_schema"),
        ([IMAGE], CAPTION | {"caption": " "}, "empty_answer"),
    ],
)
def test_a_bad_caption_leaves_its_neighbour_alone(images, annotation, reason):
    other = {"id": 7, "file_name": "c.jpg"}
    source = document([*images, other], [annotation, {"image_id": 7, "caption": "c"}])
    assert reasons(ANNOTATIONS, source)[:2] == [reason, None]


def test_results_name_their_image_by_its_number():
    context = Context(file=PurePath("results/captions_train2014_results.json"))
    assert drafts(RESULTS, {"image_id": 42, "caption": "a dog", "score": 0.5}, context=context) == [
        captioned("a dog", image_names.coco(42, "train2014"), {"image_id": 42, "score": 0.5})
    ]


@pytest.mark.parametrize(
    "record", [{"image_id": None, "caption": "a"}, {"image_id": 42, "caption": ["a"]}, {"image_id": 42}, None]
)
def test_bad_results(record):
    assert reasons(RESULTS, record) == ["bad_schema"]


def test_every_sentence_of_karpathy_is_a_conversation():
    source = {"images": [SENTENCES | {"sentences": [{"raw": "a", "sentid": 1}, {"raw": "b", "tokens": ["b"]}]}]}
    medium, meta = image_names.named(f"val2014/{NAME}"), {"split": "test", "cocoid": 42}
    assert drafts(KARPATHY, source) == [
        captioned("a", medium, meta | {"sentence": {"sentid": 1}}),
        captioned("b", medium, meta | {"sentence": {"tokens": ["b"]}}),
    ]


def test_flickr_has_no_folders_in_karpathys_splits():
    (draft,) = drafts(KARPATHY, {"images": [{"filename": "1.jpg", "sentences": [{"raw": "a"}]}]})
    assert draft.media == (image_names.named("1.jpg"),)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (SENTENCES | {"sentences": []}, ["empty_answer"]),
        (
            SENTENCES | {"sentences": [{"raw": "a"}, {"tokens": []}, None, {"raw": "b"}]},
            [None, *["bad_schema"] * 2, None],
        ),
        (SENTENCES | {"sentences": None}, ["bad_schema"]),
        (SENTENCES, ["bad_schema"]),
        ({"filename": "", "filepath": "val2014", "sentences": [{"raw": "a"}]}, ["bad_schema"]),
        ({"filename": "a", "filepath": 3, "sentences": [{"raw": "a"}]}, ["bad_schema"]),
        ("broken", ["bad_schema"]),
    ],
)
def test_a_bad_image_of_karpathy_leaves_its_neighbour_alone(image, found):
    good = {"filename": "1.jpg", "sentences": [{"raw": "a"}]}
    assert reasons(KARPATHY, {"images": [image, good]}) == [*found, None]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("record", [{}, {"images": 3, "annotations": []}, "text", None])
def test_what_is_no_such_document(form, record):
    assert reasons(form, record) == ["bad_schema"]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (document([IMAGE], [CAPTION]), "coco-captions"),
        (document([IMAGE, None], [CAPTION, None]), "coco-captions"),
        ({"image_id": 42, "caption": None}, "coco-caption-results"),
        ({"images": [SENTENCES | {"sentences": []}], "dataset": "coco"}, "karpathy"),
    ],
)
def test_detection(record, name):
    assert registry.detect([record], FORMATS).name == name


@pytest.mark.parametrize(
    "record",
    [
        document([IMAGE], [{"image_id": 42, "bbox": [1, 2, 3, 4], "category_id": 1}]),
        document([], []),
        {"annotations": [CAPTION]},
        {"images": ["a.jpg"]},
        {"image": "a.jpg", "image_id": 42, "caption": "a"},
        {"video_id": "v", "image_id": 42, "caption": "a"},
        [CAPTION],
    ],
)
def test_what_is_none_of_them(record):
    assert not any(form.matches(record) for form in FORMATS)


@pytest.mark.parametrize(("form", "count"), [(ANNOTATIONS, 2), (RESULTS, 1), (KARPATHY, 1)])
def test_the_examples(form, count):
    assert registry.detect([form.example], FORMATS) is form
    assert len(drafts(form, form.example)) == count


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_nothing_but_record_errors(form):
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(record=broken(form.example))
    def check(record):
        check_robust(form, record)

    check()
