"""MiniCPM-V's named placeholders against canonical records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_one_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import messages
from aria_finetune.data_formats.chat.minicpm_v import FORMAT
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
    return {"conversations": [{"role": speaker, "content": content} for speaker, content in turns], **rest}


ASK, TELL = ("user", "What?"), ("assistant", "A tree.")
TOLD = Message("assistant", (text("A tree."),))
NAMED = {"<image_00>": "0.jpg", "<image_01>": "1.jpg", "<image_02>": "2.jpg"}


def test_the_order_is_that_of_the_placeholders():
    source = record(("user", "<image_02>\n<image_00>?"), TELL, ("user", "Or <image_01>"), TELL, image=NAMED, id="0")
    assert convert(source) == Draft(
        messages=(
            Message("user", (image(0), image(1), text("?"))),
            TOLD,
            Message("user", (text("Or "), image(2))),
            TOLD,
        ),
        media=tuple(MediaReference("image", name) for name in ("2.jpg", "0.jpg", "1.jpg")),
        meta={"id": "0"},
        repairs=("blank_text_dropped",),
    )


def test_a_placeholder_used_twice_shows_its_image_twice():
    draft = convert(record(("user", "<image_1>a<image_0>b<image_1>"), TELL, image={"<image_0>": "a", "<image_1>": "b"}))
    assert draft.messages[0].content == (image(0), text("a"), image(1), text("b"), image(0))
    assert draft.media == (MediaReference("image", "b"), MediaReference("image", "a"))


def test_images_without_any_placeholder_go_first():
    draft = convert(record(ASK, TELL, image=NAMED))
    assert draft.messages[0].content == (image(0), image(1), image(2), text("What?"))
    assert [medium.reference for medium in draft.media] == ["0.jpg", "1.jpg", "2.jpg"]
    assert draft.repairs == ("placeholder_added",)


def test_places_that_a_row_of_a_table_does_not_have():
    draft = convert(record(("user", "<image_01>?"), TELL, image={"<image_00>": None, "<image_01>": "1.jpg"}))
    assert draft.media == (MediaReference("image", "1.jpg"),)


@pytest.mark.parametrize(
    ("content", "named", "parts", "repairs"),
    [
        ("<image>\nWhat?", "a.jpg", (image(0), text("\nWhat?")), ()),
        ("What?", "a.jpg", (image(0), text("What?")), ("placeholder_added",)),
        ("What?<image>", {"<image>": "a.jpg"}, (text("What?"), image(0)), ()),
        ("<image>?", {"path": "a.jpg"}, (image(0), text("?")), ()),
    ],
)
def test_one_image(content, named, parts, repairs):
    draft = convert(record(("user", content), TELL, image=named))
    assert draft == Draft((Message("user", parts), TOLD), (MediaReference("image", "a.jpg"),), repairs=repairs)


def test_the_source_is_left_as_it_is():
    source = record(("user", "<image_01><image_00>"), TELL, image={"<image_00>": "a", "<image_01>": "b"})
    convert(source)
    assert source["conversations"][0]["content"] == "<image_01><image_00>"
    assert source["image"] == {"<image_00>": "a", "<image_01>": "b"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (record(("user", "<image_03>"), TELL, image=NAMED), "placeholder_mismatch"),
        (record(("user", "<image_00><image_01>"), TELL, image=NAMED), "placeholder_mismatch"),
        (record(("user", "<image>"), TELL, image=NAMED), "placeholder_mismatch"),
        (record(("user", "<image_00><image>"), TELL, image={"<image_00>": "a"}), "placeholder_mismatch"),
        (record(("user", "<image><image>"), TELL, image="a"), "placeholder_mismatch"),
        (record(("user", "<image_00>"), TELL, image={"<image_00>": 5}), "bad_schema"),
        (record(("user", "<image_00>"), TELL, image={"<image_00>": "a"}, audio="a.wav"), "unsupported_modality"),
        (record(ASK, TELL, image={}), "bad_schema"),
        (record(ASK, TELL, image=NAMED) | {"conversations": None}, "bad_schema"),
        (record(ASK, TELL, image=NAMED) | {"conversations": ["a"]}, "bad_schema"),
        (record(TELL, image=NAMED), "bad_roles"),
        (record(("bot", "a"), TELL), "bad_roles"),
        (record(ASK, ("assistant", None)), "empty_answer"),
        ({"image": NAMED}, "bad_schema"),
        ({"messages": [{"role": "user", "content": "a"}]}, "bad_schema"),
        ("text", "bad_schema"),
        (record(("user", "<image_00>"), TELL, image={"<image_00>": "\udcff"}), "bad_text"),
    ],
)
def test_bad_records(source, reason):
    with pytest.raises(RecordError) as caught:
        convert(source)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([record(ASK, TELL, image=NAMED)], "minicpm-v"),
        ([record(ASK, TELL, image="a"), record(ASK, TELL, image=NAMED), record(ASK, TELL)], "minicpm-v"),
        ([record(ASK, TELL, image="a")], "messages"),
        ([record(ASK, TELL, image={"path": "a"})], "messages"),
        ([record(ASK, TELL, image=["a"])], "messages"),
        ([record(ASK, TELL, image=NAMED), record(ASK, TELL, video="v")], "messages"),
        ([{"messages": record(ASK, TELL)["conversations"]}], "messages"),
        ([FORMAT.example], "minicpm-v"),
    ],
)
def test_detection(records, name):
    assert registry.detect(records, (messages.FORMAT, FORMAT)).name == name


@pytest.mark.parametrize("source", [None, {}, {"conversations": [{"from": "human", "value": "a"}], "image": NAMED}])
def test_not_of_minicpm_v(source):
    assert not FORMAT.matches(source)


def test_the_example_is_sound():
    assert [medium.reference for medium in convert(FORMAT.example).media] == ["images/autumn.jpg", "images/spring.jpg"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    source=mutations(
        record(("user", "<image_01><image_00><image_02>a"), TELL, image=NAMED, id=1),
        words=("<image_00>", "<image_09>"),
        more_keys=("<image_00>",),
    )
)
def test_only_record_errors_are_raised(source):
    convert_one_or_reject(FORMAT, source)
