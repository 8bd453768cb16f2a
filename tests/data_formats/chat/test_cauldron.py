"""Tables of images and texts, and the structs in which tables hold images, against records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import llava, messages
from aria_finetune.data_formats.chat.cauldron import FORMAT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

PNG = b"\x89PNG"


def text(content):
    return Part("text", content)


def convert(record, form=FORMAT):
    (draft,) = form.convert(record)
    return checked(draft)


def turn(user="What?", assistant="A cat.", **more):
    return {"user": user, "assistant": assistant, **more}


def test_all_images_come_before_the_first_question():
    record = {
        "images": [{"bytes": PNG, "path": None}, {"bytes": None, "path": "b.jpg"}, {"bytes": PNG, "path": "c.png"}],
        "texts": [turn(source="vqa"), turn("Sure?\n", "Yes.", source="vqa")],
        "relevance_min": 3,
    }
    assert convert(record) == Draft(
        (
            Message("user", (Part("image", media=0), Part("image", media=1), Part("image", media=2), text("What?"))),
            Message("assistant", (text("A cat."),)),
            Message("user", (text("Sure?\n"),)),
            Message("assistant", (text("Yes."),)),
        ),
        (
            MediaReference("image", "images[0]", content=PNG),
            MediaReference("image", "b.jpg"),
            MediaReference("image", "c.png", content=PNG),
        ),
        meta={"relevance_min": 3, "texts": {"0": {"source": "vqa"}, "1": {"source": "vqa"}}},
    )


@pytest.mark.parametrize("images", [{}, {"images": None}, {"images": []}])
def test_no_image(images):
    draft = convert({"texts": [turn()], **images})
    assert draft.messages[0].content == (text("What?"),)
    assert draft.media == ()


def test_placeholders_are_text():
    draft = convert({"images": ["a.jpg"], "texts": [turn("<image>What?")]})
    assert draft.messages[0].content == (Part("image", media=0), text("<image>What?"))
    assert draft.repairs == ("placeholder_kept_as_text",)


def test_what_an_image_has_beside_is_kept_and_binary_cells_are_not():
    images = [{"bytes": PNG, "path": "a.png", "width": 3, "thumb": PNG}]
    draft = convert({"images": images, "texts": [turn()], "icon": PNG, "list": [1, PNG]})
    assert draft.meta == {"images": {"0": {"width": 3}}, "list": [1]}
    assert draft.repairs == ("bytes_dropped",)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"images": [{"bytes": None, "path": None}], "texts": [turn()]}, "bad_schema"),
        ({"images": [{"bytes": "text", "path": "a"}], "texts": [turn()]}, "bad_schema"),
        ({"images": [{"bytes": PNG, "path": 3}], "texts": [turn()]}, "bad_schema"),
        ({"images": [None], "texts": [turn()]}, "bad_schema"),
        ({"images": [], "texts": [turn(user=None)]}, "bad_schema"),
        ({"images": [], "texts": [{"user": "a"}]}, "bad_schema"),
        ({"images": [], "texts": ["a"]}, "bad_schema"),
        ({"images": [], "texts": None}, "bad_schema"),
        ({"images": []}, "bad_schema"),
        ({"images": [], "texts": []}, "bad_roles"),
        ({"images": ["a"], "texts": []}, "bad_roles"),
        ({"images": [], "texts": [turn(assistant="")]}, "empty_answer"),
        ({"images": [], "texts": [turn(assistant=None)]}, "empty_answer"),
    ],
)
def test_bad_records(record, reason):
    with pytest.raises(RecordError) as caught:
        convert(record)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("image", "medium"),
    [
        ({"bytes": PNG, "path": None}, MediaReference("image", "image", content=PNG)),
        ({"bytes": PNG, "path": ""}, MediaReference("image", "image", content=PNG)),
        ({"bytes": PNG, "path": "a/b.png"}, MediaReference("image", "a/b.png", content=PNG)),
        ({"bytes": None, "path": "a/b.png"}, MediaReference("image", "a/b.png")),
        (PNG, MediaReference("image", "image", content=PNG)),
        ([{"bytes": PNG, "path": None}], MediaReference("image", "image[0]", content=PNG)),
    ],
)
def test_structs_in_other_chat_formats(image, medium):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}]
    assert convert({"image": image, "conversations": turns}, llava.FORMAT).media == (medium,)
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    assert convert({"image": image, "messages": turns}, messages.FORMAT).media == (medium,)


def test_equal_bytes_under_one_name_are_one_medium():
    struct = {"bytes": PNG, "path": "a.png"}
    draft = convert({"images": [struct, dict(struct)], "texts": [turn()]})
    assert draft.messages[0].content[:2] == (Part("image", media=0), Part("image", media=0))
    assert len(draft.media) == 1


@pytest.mark.parametrize(
    ("record", "fits"),
    [
        ({"images": None, "texts": [turn()]}, True),
        ({"texts": [{"assistant": None}]}, True),
        ({"images": ["a", None], "texts": [None, "b"]}, False),
        ({"images": [], "texts": []}, False),
        ({"texts": "a"}, False),
        ([], False),
    ],
)
def test_detection(record, fits):
    assert FORMAT.matches(record) is fits


def test_the_example_is_of_its_format_and_sound():
    assert registry.detect([FORMAT.example], (FORMAT, messages.FORMAT, llava.FORMAT)) is FORMAT
    assert convert(FORMAT.example).repairs == ()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(record=mutations(FORMAT.example, {"images": [{"bytes": None, "path": "a"}], "texts": [turn(source="b")]}))
def test_only_record_errors_are_raised(record):
    convert_or_reject(FORMAT, record)
