"""InternVL's records against canonical ones written by hand, and the file that lists its sets."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_one_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import llava, qwen_vl
from aria_finetune.data_formats.chat.internvl import FORMAT, InternVLSet, annotations, is_meta
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked


def text(content):
    return Part("text", text=content)


def image(number):
    return Part("image", media=number)


def convert(source):
    (draft,) = FORMAT.convert(source)
    return checked(draft)


def record(*turns, **rest):
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], **rest}


ASK, TELL = ("human", "What?"), ("gpt", "A lamp.")
TOLD = Message("assistant", (text("A lamp."),))
VIDEO = ("human", "<video>\nWhat?")


def test_several_images_with_sizes():
    sizes = {"width_list": [640, 480], "height_list": [480, 640]}
    source = record(
        ("human", "Image-1: <image>\nImage-2: <image>\nSame?"), TELL, image=["a.jpg", "b.jpg"], id=0, **sizes
    )
    assert convert(source) == Draft(
        messages=(
            Message("user", (text("Image-1: "), image(0), text("\nImage-2: "), image(1), text("\nSame?"))),
            TOLD,
        ),
        media=(MediaReference("image", "a.jpg"), MediaReference("image", "b.jpg")),
        meta={"id": 0, **sizes},
    )


def test_one_image_without_a_placeholder():
    draft = convert(record(ASK, TELL, image="a.jpg", width=640, height=480))
    assert draft.messages[0].content == (image(0), text("What?"))
    assert draft.meta == {"width": 640, "height": 480}
    assert draft.repairs == ("placeholder_added",)


@pytest.mark.parametrize(("clip", "times"), [([3, 10.5], (3.0, 10.5)), ([0, 1], (0.0, 1.0)), (None, (None, None))])
def test_a_clip_is_a_part_of_the_video(clip, times):
    draft = convert(record(VIDEO, TELL, video="v.mp4", clip=clip))
    assert draft.media == (MediaReference("video", "v.mp4", start=times[0], end=times[1]),)
    assert draft.messages[0].content == (Part("video", media=0), text("\nWhat?"))
    assert draft.meta == {}


def test_a_clip_does_not_touch_images():
    draft = convert(record(("human", "<image><video>"), TELL, image="a.jpg", video="v.mp4", clip=[1, 2]))
    assert draft.media == (MediaReference("image", "a.jpg"), MediaReference("video", "v.mp4", start=1.0, end=2.0))


def test_boxes_stay_text_and_their_coordinates_are_named():
    boxed = "<ref>the lamp</ref><box>[[41, 208, 190, 655]]</box>"
    draft = convert(record(("human", "<image>Where?"), ("gpt", boxed), image="a.jpg", width=9, height=9))
    assert draft.messages[1].content == (text(boxed),)
    assert draft.meta["coordinates"] == "[[x1, y1, x2, y2]] from 0 to 1000 of the width and height"


@pytest.mark.parametrize(
    ("answer", "rest", "meta"),
    [
        ("<box>(1,2),(3,4)</box>", {}, {}),
        ("<box> [[1, 2, 3, 4]]</box>", {"coordinates": "pixels"}, {"coordinates": "pixels"}),
    ],
)
def test_coordinates_are_named_for_its_own_boxes_only(answer, rest, meta):
    assert convert(record(ASK, ("gpt", answer), **rest)).meta == meta


@pytest.mark.parametrize("empty", [{"image": ""}, {"image": []}, {"video": ""}, {"image": None}])
def test_empty_media_are_none(empty):
    assert convert(record(ASK, TELL, **empty)) == Draft((Message("user", (text("What?"),)), TOLD))


def test_answers_under_text():
    source = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "text": "A lamp.", "model": "m"}]}
    draft = convert(source)
    assert draft.messages[1] == TOLD
    assert draft.meta == {"conversations": {"1": {"model": "m"}}}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (record(VIDEO, TELL, video="v", clip=[3]), "bad_schema"),
        (record(VIDEO, TELL, video="v", clip=[3, 4, 5]), "bad_schema"),
        (record(VIDEO, TELL, video="v", clip=[3, "4"]), "bad_schema"),
        (record(VIDEO, TELL, video="v", clip=[False, True]), "bad_schema"),
        (record(VIDEO, TELL, video="v", clip=[1, None, 2]), "bad_schema"),
        (record(VIDEO, TELL, video="v", clip=[4, 4]), "bad_schema"),
        (record(VIDEO, TELL, video="v", clip=[-1, 4]), "bad_schema"),
        (record(VIDEO, TELL, video="v", clip="3-4"), "bad_schema"),
        (record(ASK, TELL, image="a", clip=[3, 4]), "bad_schema"),
        (record(("human", "<video><video>"), TELL, video=["v", "w"], clip=[3, 4]), "bad_schema"),
        (record(("human", "<image>What?"), TELL, width=3), "placeholder_mismatch"),
        (record(("human", "<image>"), TELL, image=["a", "b"]), "placeholder_mismatch"),
        (record(ASK, TELL, image=5), "bad_schema"),
        (record(ASK, TELL, audio="a"), "unsupported_modality"),
        (record(TELL), "bad_roles"),
        (record(("pretrain", "a"), TELL), "bad_roles"),
        (record(ASK, ("gpt", None)), "empty_answer"),
        ({"conversations": "a"}, "bad_schema"),
        ({}, "bad_schema"),
        ([record(ASK, TELL)], "bad_schema"),
        (record(ASK, ("gpt", "\udcff")), "bad_text"),
    ],
)
def test_bad_records(source, reason):
    with pytest.raises(RecordError) as caught:
        convert(source)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([record(ASK, TELL, image="a", width=3, height=4)], "internvl"),
        ([record(ASK, TELL), record(ASK, TELL, image=["a"], width_list=[3], height_list=[4])], "internvl"),
        ([record(VIDEO, TELL, video="v", clip=[3, 4])], "internvl"),
        ([record(ASK, TELL, image="a")], "llava"),
        ([[record(ASK, TELL, width=3)]], "llava"),
        ([FORMAT.example], "internvl"),
    ],
)
def test_detection(records, name):
    assert registry.detect(records, (llava.FORMAT, FORMAT, qwen_vl.FORMAT)).name == name


@pytest.mark.parametrize("source", [None, {}, {"width": 3}, {"messages": []}])
def test_not_of_internvl(source):
    assert not FORMAT.matches(source)


def test_the_example_is_sound():
    assert "coordinates" in convert(FORMAT.example).meta


ENTRY = {"root": "data/coco/", "annotation": "lists/coco.jsonl", "data_augment": False, "repeat_time": 1, "length": 9}


class TestMetaFile:
    def test_the_sets_in_their_order(self):
        document = {"coco": ENTRY | {"max_dynamic_patch": 12}, "charts": {"root": "c", "annotation": "c.jsonl"}}
        assert is_meta(document)
        assert annotations(document) == [
            InternVLSet(
                "coco", "data/coco/", "lists/coco.jsonl", 1, 9, {"data_augment": False, "max_dynamic_patch": 12}
            ),
            InternVLSet("charts", "c", "c.jsonl", 1, None, {}),
        ]

    @pytest.mark.parametrize("repeat_time", [0.03, 1, 2, 2.5])
    def test_a_part_or_a_multiple(self, repeat_time):
        assert annotations({"a": ENTRY | {"repeat_time": repeat_time}})[0].repeat_time == repeat_time

    @pytest.mark.parametrize("length", ["number of samples", None, True])
    def test_a_length_that_is_no_number_says_nothing(self, length):
        assert annotations({"a": ENTRY | {"length": length}})[0].length is None

    @pytest.mark.parametrize(
        "document", [None, [], [ENTRY], {}, {"a": 1}, ENTRY, {"a": ENTRY, "b": {"root": "b"}}, {"data": [ENTRY]}]
    )
    def test_other_documents(self, document):
        assert not is_meta(document)
        with pytest.raises(FormatError, match="InternVL"):
            annotations(document)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"root": None}, "'root'"),
            ({"root": ""}, "'root'"),
            ({"annotation": ["a.jsonl"]}, "'annotation'"),
            ({"repeat_time": 0}, "repeat_time of 0"),
            ({"repeat_time": -1}, "repeat_time"),
            ({"repeat_time": "2"}, "repeat_time"),
            ({"repeat_time": True}, "repeat_time"),
        ],
    )
    def test_an_entry_that_can_not_be_used_is_named(self, changed, said):
        with pytest.raises(FormatError) as caught:
            annotations({"coco": ENTRY | changed})
        assert "'coco'" in caught.value.message
        assert said in caught.value.message
        assert caught.value.fix


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    source=mutations(
        record(("human", "<image><video>"), TELL, image=["a"], video="v", clip=[1, 2], width=3), more_keys=("text",)
    )
)
def test_only_record_errors_are_raised(source):
    convert_one_or_reject(FORMAT, source)
