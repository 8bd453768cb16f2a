"""Mantis' conversations against canonical records written by hand, and the sets that are refused."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_one_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import llava, messages
from aria_finetune.data_formats.chat.mantis import CHAT, FORMATS, REGRESSION
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

FORMAT = CHAT


def text(content):
    return Part("text", text=content)


def image(number):
    return Part("image", media=number)


def convert(source):
    (draft,) = FORMAT.convert(source)
    return checked(draft)


def record(*turns, **rest):
    return {"conversation": [{"role": speaker, "content": content} for speaker, content in turns], **rest}


ASK, TELL = ("user", "What?"), ("assistant", "A clock.")
TOLD = Message("assistant", (text("A clock."),))
SCORES = {"id": "a", "images": ["1.jpg"], "prompt": "Rate it.", "labels": {"sharpness": 3.0, "steadiness": 1}}


def test_images_take_their_places():
    source = record(
        ("user", "<image> <image>Same?"), TELL, ("user", "And <image>?"), TELL,
        images=["a.jpg", "b.jpg", "a.jpg"], id="x_3", source="pairs",
    )  # fmt: skip
    assert convert(source) == Draft(
        messages=(
            Message("user", (image(0), image(1), text("Same?"))),
            TOLD,
            Message("user", (text("And "), image(0), text("?"))),
            TOLD,
        ),
        media=(MediaReference("image", "a.jpg"), MediaReference("image", "b.jpg")),
        meta={"id": "x_3", "source": "pairs"},
        repairs=("blank_text_dropped",),
    )


def test_a_video_has_no_placeholder():
    assert convert(record(ASK, TELL, video="v.mp4", id="v_0")) == Draft(
        messages=(Message("user", (Part("video", media=0), text("What?"))), TOLD),
        media=(MediaReference("video", "v.mp4"),),
        meta={"id": "v_0"},
        repairs=("placeholder_added",),
    )


def test_images_of_a_table():
    held = [{"bytes": b"x", "path": "a.jpg"}, {"bytes": b"y", "path": None}, {"bytes": None, "path": "c.jpg"}]
    draft = convert(record(("user", "<image><image><image>?"), TELL, images=held))
    assert draft.media == (
        MediaReference("image", "a.jpg", content=b"x"),
        MediaReference("image", "images[1]", content=b"y"),
        MediaReference("image", "c.jpg"),
    )


def test_text_alone():
    source = record(ASK, ("assistant", "Use <image>."), images=None, system="Be brief.", thumbnail=b"x")
    source["conversation"][1] |= {"train": False, "model": "m"}
    draft = convert(source)
    assert [message.role for message in draft.messages] == ["system", "user", "assistant"]
    assert draft.messages[2] == Message("assistant", (text("Use <image>."),), train=False)
    assert draft.meta == {"conversation": {"1": {"model": "m"}}}
    assert draft.repairs == ("bytes_dropped",)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (record(("user", "<image>What?"), TELL, images=["a", "b"]), "placeholder_mismatch"),
        (record(("user", "<image><image>"), TELL, images=["a"]), "placeholder_mismatch"),
        (record(("user", "<image>What?"), TELL, images=[]), "placeholder_mismatch"),
        (record(("user", "<image>What?"), TELL), "placeholder_mismatch"),
        (record(TELL, ASK, TELL), "bad_roles"),
        (record(("bot", "a"), TELL), "bad_roles"),
        (record(ASK, ("assistant", "")), "empty_answer"),
        (record(ASK, ("assistant", None)), "empty_answer"),
        (record(ASK), "empty_answer"),
        (record(("user", ["What?"]), TELL), "bad_schema"),
        (record(ASK, TELL, images=[5]), "bad_schema"),
        (record(ASK, TELL, images=[{"bytes": None, "path": None}]), "bad_schema"),
        (record(ASK, TELL, image="a", images=["b"]), "bad_schema"),
        (record(ASK, TELL, audio="a.wav"), "unsupported_modality"),
        ({"conversation": None}, "bad_schema"),
        ({"conversation": ["What?"]}, "bad_schema"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "bad_schema"),
        ("text", "bad_schema"),
        (record(ASK, TELL, images=["\udcff"]), "bad_text"),
    ],
)
def test_bad_records(source, reason):
    with pytest.raises(RecordError) as caught:
        convert(source)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([record(ASK, TELL, images=["a"])], "mantis"),
        ([record(ASK, TELL, video="v")], "mantis"),
        ([record(ASK, TELL), record(ASK, TELL, images=["a"])], "mantis"),
        ([record(ASK, TELL)], "messages"),
        ([record(("user", [{"type": "image"}]), TELL, images=["a"])], "messages"),
        ([{"messages": record(ASK, TELL)["conversation"], "images": ["a"]}], "messages"),
        ([record(ASK, TELL, conversations=[{"from": "human", "value": "a"}], images=["a"])], "messages"),
        ([CHAT.example], "mantis"),
        ([SCORES], "mantis-regression"),
        ([REGRESSION.example], "mantis-regression"),
    ],
)
def test_detection(records, name):
    formats = (*FORMATS, messages.FORMAT)
    assert registry.detect(records, formats).name == name


@pytest.mark.parametrize(
    "source",
    [
        None,
        [{"role": "user", "content": "a"}],
        {"conversation": [{"human": "a", "assistant": "b"}]},
        {"conversation": [{"from": "human", "value": "a"}]},
        record(ASK, TELL, rejected="b"),
    ],
)
def test_not_a_conversation_of_mantis(source):
    assert not CHAT.matches(source)


def test_records_with_from_and_value_are_read_as_llava():
    source = {"id": "0", "images": ["a"], "conversations": [{"from": "human", "value": "<image>a"}]}
    assert [form.name for form in (*FORMATS, messages.FORMAT, llava.FORMAT) if form.matches(source)] == ["llava"]


class TestRegression:
    @pytest.mark.parametrize(
        "changed", [{"labels": [1.0]}, {"labels": "good"}, {"labels": {"a": "good"}}, {"labels": None}]
    )
    def test_labels_are_scores(self, changed):
        assert not REGRESSION.matches(SCORES | changed)

    @pytest.mark.parametrize("key", ["prompt", "images", "labels"])
    def test_every_key_is_needed(self, key):
        assert not REGRESSION.matches({name: value for name, value in SCORES.items() if name != key})

    def test_it_is_refused(self):
        assert "regression" in REGRESSION.refused
        (candidate,) = REGRESSION.convert(SCORES)
        assert (candidate.reason, candidate.detail) == ("empty_answer", REGRESSION.refused)


def test_the_example_is_sound():
    assert len(convert(CHAT.example).media) == 2


@settings(max_examples=100, deadline=None, derandomize=True)
@given(source=mutations(record(("user", "<image>a"), TELL, images=["a.jpg"], video="v", id=1), more_keys=("path",)))
def test_only_record_errors_are_raised(source):
    convert_one_or_reject(FORMAT, source)
