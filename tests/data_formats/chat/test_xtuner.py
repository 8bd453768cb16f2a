"""xtuner's messages against canonical records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building.fields import json_text
from aria_finetune.data_formats.chat import aria, messages
from aria_finetune.data_formats.chat.xtuner import FORMAT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

FORMS = (aria.FORMAT, messages.FORMAT, FORMAT)


def text(content):
    return Part("text", content)


def said(content):
    return {"type": "text", "text": content}


def image(name, **more):
    return {"type": "image_url", "image_url": {"url": name, **more}}


def video(name, **more):
    return {"type": "video_url", "video_url": {"url": name, **more}}


def user(*content):
    return {"role": "user", "content": list(content)}


TELL = {"role": "assistant", "content": "A cat."}
TOLD = Message("assistant", (text("A cat."),))


def convert(*turns, **rest):
    (draft,) = FORMAT.convert({"messages": list(turns), **rest})
    return checked(draft)


def test_media_are_listed_first_and_shown_where_the_placeholders_are():
    turns = user(image("a.jpg", image_wh=[4, 3]), image("b.jpg"), said("<IMG_CONTEXT>\nand\n<IMG_CONTEXT>\nSame?"))
    assert convert(turns, TELL, id=1) == Draft(
        (
            Message("user", (Part("image", media=0), text("\nand\n"), Part("image", media=1), text("\nSame?"))),
            TOLD,
        ),
        (MediaReference("image", "a.jpg"), MediaReference("image", "b.jpg")),
        meta={"id": 1, "parts": {"0.0": {"image_wh": [4, 3]}}},
    )


def test_images_and_videos_are_placed_by_their_own_placeholders_in_their_turns():
    turns = (
        user(video("v.mp4", origin_fps=25), image("a.jpg"), said("<IMG_CONTEXT> in <VIDEO_CONTEXT>?")),
        TELL,
        user(image("b.jpg"), said("And <IMG_CONTEXT>?")),
        TELL,
    )
    draft = convert(*turns)
    assert draft.messages[0].content == (Part("image", media=0), text(" in "), Part("video", media=1), text("?"))
    assert draft.messages[2].content == (text("And "), Part("image", media=2), text("?"))
    assert [medium.reference for medium in draft.media] == ["a.jpg", "v.mp4", "b.jpg"]
    assert draft.meta == {"parts": {"0.0": {"origin_fps": 25}}}


def test_without_placeholders_parts_stay_where_they_stand():
    draft = convert(
        user(said("Is "), {"type": "image", "image": {"url": "a.jpg", "image_wh": [4, 3]}}, said("red?")), TELL
    )
    assert draft.messages[0].content == (text("Is "), Part("image", media=0), text("red?"))
    assert draft.meta == {"parts": {"0.1": {"image_wh": [4, 3]}}}


def test_loss_reasoning_and_calls():
    turns = (
        {"role": "system", "content": "Be brief.", "loss": False},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "loss": False, "reasoning_content": "Hm."},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": None, "loss": True, "tool_calls": [{"id": "1"}]},
    )
    draft = convert(*turns, tools=[{"name": "f"}])
    assert [message.train for message in draft.messages] == [False, None, False, None, True]
    assert draft.messages[4].content == (text(json_text([{"id": "1"}])),)
    assert draft.meta == {"messages": {"2": {"reasoning_content": "Hm."}}}
    assert draft.tools == json_text([{"name": "f"}])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("It was night.", (text("It was night."),)),
        ([image("a.jpg"), said("<IMG_CONTEXT> It was night.")], (Part("image", media=0), text(" It was night."))),
    ],
)
def test_pretrain_is_a_document(content, parts):
    draft = convert({"role": "pretrain", "content": content})
    assert draft.document
    assert draft.messages == (Message("assistant", parts),)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([user(image("a"), said("<IMG_CONTEXT><IMG_CONTEXT>")), TELL], "placeholder_mismatch"),
        ([user(image("a"), image("b"), said("<IMG_CONTEXT>")), TELL], "placeholder_mismatch"),
        ([user(image("a"), said("<IMG_CONTEXT><VIDEO_CONTEXT>")), TELL], "placeholder_mismatch"),
        ([user(said("<IMG_CONTEXT>")), TELL], "placeholder_mismatch"),
        ([{"role": "user", "content": "<IMG_CONTEXT>?"}, TELL], "placeholder_mismatch"),
        ([user({"type": "image"}), TELL], "bad_schema"),
        ([user(image(3)), TELL], "bad_schema"),
        ([user([image("a")]), TELL], "bad_schema"),
        ([user({"type": "text"}), TELL], "bad_schema"),
        ([user({"type": "text", "text": {"type": "text"}}), TELL], "bad_schema"),
        (["a"], "bad_schema"),
        ([user({"type": "audio_url", "audio_url": {"url": "a.wav"}}), TELL], "unsupported_modality"),
        ([{"role": "pretrain", "content": "a"}, TELL], "bad_roles"),
        ([{"role": "critic", "content": "a"}, TELL], "bad_roles"),
        ([{"role": "pretrain", "content": ""}], "empty_answer"),
        ([user(said("a")), {"role": "assistant", "content": None}], "empty_answer"),
        ([user(said("a"))], "empty_answer"),
    ],
)
def test_bad_records(turns, reason):
    with pytest.raises(RecordError) as caught:
        convert(*turns)
    assert caught.value.reason == reason


@pytest.mark.parametrize("record", [{}, {"messages": None}, [], 3])
def test_no_messages(record):
    with pytest.raises(RecordError, match="bad_schema"):
        list(FORMAT.convert(record))


TEXT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PLACED = {"messages": [user(image("a.jpg"), said("<IMG_CONTEXT>?")), TELL]}
MEASURED = {"messages": [user(image("a.jpg", image_wh=[4, 3]), said("What?")), TELL]}
PRETRAIN = {"messages": [{"role": "pretrain", "content": "a"}]}
BARE = {"messages": [user({"type": "image", "text": None}), user(said("a"))], "images": ["a"]}


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([PLACED], "xtuner"),
        ([TEXT, MEASURED], "xtuner"),
        ([PRETRAIN], "xtuner"),
        ([{"messages": [{"role": "user", "content": "<VIDEO_CONTEXT>?"}]}], "xtuner"),
        ([TEXT], "messages"),
        ([{"messages": [user(image("a.jpg"), said("What?")), TELL]}], "messages"),
        ([BARE], "aria"),
    ],
)
def test_detection(records, name):
    assert registry.detect(records, FORMS).name == name


@pytest.mark.parametrize("record", [{"messages": None}, {"messages": "<IMG_CONTEXT>"}, {}, [], TEXT])
def test_what_has_no_marks(record):
    assert not FORMAT.marks(record)


def test_text_means_the_same_as_in_messages():
    assert list(FORMAT.convert(TEXT)) == list(messages.FORMAT.convert(TEXT))


def test_the_example_is_of_its_format_and_sound():
    assert registry.detect([FORMAT.example], FORMS) is FORMAT
    (draft,) = FORMAT.convert(FORMAT.example)
    assert [part.type for part in checked(draft).messages[0].content] == ["text", "image", "text", "image", "text"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(record=mutations(FORMAT.example, PRETRAIN, words=("<IMG_CONTEXT>", "<VIDEO_CONTEXT>", "pretrain", "image_url")))
def test_only_record_errors_are_raised(record):
    convert_or_reject(FORMAT, record)
