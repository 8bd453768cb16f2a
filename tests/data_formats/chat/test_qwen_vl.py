"""Qwen-VL's images inside the text against canonical records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_one_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import llava
from aria_finetune.data_formats.chat.qwen_vl import FORMAT
from aria_finetune.data_formats.errors import RecordError
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


TELL = ("assistant", "A boat.")
TOLD = Message("assistant", (text("A boat."),))
TWO = "Picture 1: <img>a.jpg</img>\nPicture 2: <img>https://host/b.jpg</img>\nSame?"


def test_images_go_where_their_tags_were():
    source = record(("user", TWO), TELL, ("user", "And in <img>a.jpg</img>?"), TELL, id="identity_2")
    assert convert(source) == Draft(
        messages=(
            Message("user", (text("Picture 1: "), image(0), text("\nPicture 2: "), image(1), text("\nSame?"))),
            TOLD,
            Message("user", (text("And in "), image(0), text("?"))),
            TOLD,
        ),
        media=(MediaReference("image", "a.jpg"), MediaReference("image", "https://host/b.jpg")),
        meta={"id": "identity_2"},
    )


def test_boxes_stay_text_and_their_coordinates_are_named():
    boxed = "<ref>The boat</ref><box>(120,388),(471,702)</box>"
    draft = convert(record(("user", "<img>a</img>Where?"), ("assistant", boxed)))
    assert draft.messages[1].content == (text(boxed),)
    assert draft.meta == {"coordinates": "(x1,y1),(x2,y2) from 0 to 999 of the width and height"}


def test_coordinates_that_the_source_names_count():
    draft = convert(record(("user", "<box>(1,2),(3,4)</box>?"), TELL, coordinates="pixels"))
    assert draft.meta == {"coordinates": "pixels"}


def test_tags_in_an_answer_are_text():
    source = record(("user", "How do I show an image?"), ("assistant", "<img>a.jpg</img> or <img>"))
    draft = convert(source)
    assert draft.messages[1].content == (text("<img>a.jpg</img> or <img>"),)
    assert draft.media == ()
    assert draft.repairs == ("placeholder_kept_as_text",)


def test_system_tools_flags_and_more():
    source = record(("user", "a"), TELL, system="s", tools=[{"name": "f"}], thumbnail=b"x")
    source["conversations"][1] |= {"loss": False, "model": "m"}
    draft = convert(source)
    assert [message.role for message in draft.messages] == ["system", "user", "assistant"]
    assert draft.messages[2].train is False
    assert draft.tools == '[{"name": "f"}]'
    assert draft.meta == {"conversations": {"1": {"model": "m"}}}
    assert draft.repairs == ("bytes_dropped",)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (record(("user", "<img>a.jpg What?"), TELL), "placeholder_mismatch"),
        (record(("user", "a.jpg</img>What?"), TELL), "placeholder_mismatch"),
        (record(("user", "<img>a</img><img>"), TELL), "placeholder_mismatch"),
        (record(("user", "<img></img>What?"), TELL), "bad_schema"),
        (record(("user", "Audio 1: <audio>a.wav</audio>What?"), TELL), "unsupported_modality"),
        (record(("user", "<img>a</img>"), TELL, image="b.jpg"), "bad_schema"),
        (record(("user", "a"), TELL, audio="a.wav"), "bad_schema"),
        (record(("user", None), TELL), "bad_schema"),
        (record(("user", "a"), ("assistant", None)), "empty_answer"),
        (record(("user", "a")), "empty_answer"),
        (record(("someone", "a"), TELL), "bad_roles"),
        (record(TELL), "bad_roles"),
        ({"conversations": None}, "bad_schema"),
        ({"conversations": ["a"]}, "bad_schema"),
        ({}, "bad_schema"),
        ([], "bad_schema"),
        (record(("user", "<img>\udcff.jpg</img>"), TELL), "bad_text"),
    ],
)
def test_bad_records(source, reason):
    with pytest.raises(RecordError) as caught:
        convert(source)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([record(("user", TWO), TELL)], "qwen-vl"),
        ([record(("user", "a"), TELL), record(("human", "<img>a</img>"), ("gpt", "b"))], "qwen-vl"),
        ([record(("user", "a"), TELL)], "llava"),
        ([record(("user", "How?"), ("assistant", "<img>a</img>"))], "llava"),
        ([record(("user", "<img src='a'>?"), TELL)], "llava"),
        ([record(("user", TWO), TELL, image="a.jpg")], "llava"),
        ([[record(("user", TWO), TELL)]], "llava"),
        ([FORMAT.example], "qwen-vl"),
    ],
)
def test_detection(records, name):
    assert registry.detect(records, (llava.FORMAT, FORMAT)).name == name


def test_text_means_the_same_in_both_formats():
    source = record(("user", "a"), TELL, system="s", id=1)
    assert list(FORMAT.convert(source)) == list(llava.FORMAT.convert(source))


@pytest.mark.parametrize("source", [None, "a", [], {}, {"conversations": [[], {"from": []}, {"from": "user"}]}])
def test_marks_only_what_has_an_image(source):
    assert not FORMAT.marks(source)


def test_the_example_is_sound():
    assert [medium.reference for medium in convert(FORMAT.example).media] == ["images/pier.jpg"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    source=mutations(
        record(("user", TWO), TELL, system="s", id=1),
        words=("<img>a</img>", "<img>", "<audio>a</audio>"),
        more_keys=("image",),
    )
)
def test_only_record_errors_are_raised(source):
    convert_one_or_reject(FORMAT, source)
