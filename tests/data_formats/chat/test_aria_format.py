"""Aria's own records against canonical ones written by hand."""

import copy

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats.chat.aria import FORMAT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked


def text(content):
    return Part("text", text=content)


def image(number):
    return Part("image", media=number)


def convert(record):
    (draft,) = FORMAT.convert(record)
    return checked(draft)


def record(parts, **media):
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    return {"messages": [{"role": "user", "content": parts}, answer], **media}


IMAGE = {"type": "image", "text": None}
VIDEO = {"type": "video", "text": None}
ANSWER = Message("assistant", (text("Yes."),))


def said(content):
    return {"type": "text", "text": content}


def test_image_parts_take_the_images_in_order():
    parts = [said("One: "), IMAGE, said("\n"), said("Two: "), IMAGE, said("Same?")]
    assert convert(record(parts, images=["b.jpg", "a.jpg"], video=None, id=7)) == Draft(
        messages=(
            Message("user", (text("One: "), image(0), text("\nTwo: "), image(1), text("Same?"))),
            ANSWER,
        ),
        media=(MediaReference("image", "b.jpg"), MediaReference("image", "a.jpg")),
        meta={"id": 7},
    )


def test_an_image_shown_twice_is_held_once_and_blank_text_beside_it_goes():
    draft = convert(record([IMAGE, said("\n"), IMAGE, said("Same?")], images=["a.jpg", "a.jpg"]))
    assert draft.messages[0].content == (image(0), image(0), text("Same?"))
    assert draft.media == (MediaReference("image", "a.jpg"),)
    assert draft.repairs == ("blank_text_dropped",)


@pytest.mark.parametrize(("num_frames", "kept"), [(8, 8), (0, None), (-1, None), (None, None)])
def test_a_video_asks_for_frames(num_frames, kept):
    draft = convert(record([VIDEO, said("What?")], images=None, video={"path": "v.mp4", "num_frames": num_frames}))
    assert draft.messages[0].content == (Part("video", media=0), text("What?"))
    assert draft.media == (MediaReference("video", "v.mp4", num_frames=kept),)


def test_images_and_a_video_together():
    draft = convert(record([VIDEO, IMAGE, said("Is it there?")], images=["a.jpg"], video={"path": "v.mp4"}))
    assert [part.type for part in draft.messages[0].content] == ["video", "image", "text"]
    assert draft.media == (MediaReference("video", "v.mp4"), MediaReference("image", "a.jpg"))


def test_text_alone_with_a_system_turn():
    source = record([said("Really?")])
    source["messages"].insert(0, {"role": "system", "content": [said("Be brief.")]})
    assert convert(source).messages == (
        Message("system", (text("Be brief."),)),
        Message("user", (text("Really?"),)),
        ANSWER,
    )


@pytest.mark.parametrize(
    ("parts", "media", "reason"),
    [
        ([IMAGE], {}, "placeholder_mismatch"),
        ([IMAGE], {"images": []}, "placeholder_mismatch"),
        ([IMAGE], {"images": ["a.jpg", "b.jpg"]}, "placeholder_mismatch"),
        ([said("What?")], {"images": ["a.jpg"]}, "placeholder_mismatch"),
        ([said("What?")], {"video": {"path": "v.mp4", "num_frames": 8}}, "placeholder_mismatch"),
        ([VIDEO, VIDEO], {"video": {"path": "v.mp4", "num_frames": 8}}, "placeholder_mismatch"),
        ([VIDEO], {"images": ["a.jpg"]}, "placeholder_mismatch"),
        ([{"type": "audio", "text": None}], {}, "unsupported_modality"),
        ([{"type": "image", "text": "a.jpg"}], {"images": ["a.jpg"]}, "bad_schema"),
        ([{"type": "text", "text": None}], {}, "bad_schema"),
        ([{"type": "text"}], {}, "bad_schema"),
        (["What?"], {}, "bad_schema"),
        ("What?", {}, "bad_schema"),
        ([IMAGE], {"images": [1]}, "bad_schema"),
        ([IMAGE], {"images": [""]}, "bad_schema"),
        ([VIDEO], {"video": {"num_frames": 8}}, "bad_schema"),
        ([VIDEO], {"video": {"path": "v.mp4", "num_frames": "8"}}, "bad_schema"),
        ([VIDEO], {"video": {"path": "v.mp4", "num_frames": True}}, "bad_schema"),
        ([said("What \ud800?")], {}, "bad_text"),
    ],
)
def test_bad_records(parts, media, reason):
    with pytest.raises(RecordError) as caught:
        convert(record(parts, **media))
    assert caught.value.reason == reason


def asked(**beside):
    """A row of the authors' files for evaluation, as their evaluation scripts read it."""
    return {"messages": [{"role": "user", "content": [IMAGE, said("Where?")]}], "images": ["a.jpg"], **beside}


@pytest.mark.parametrize(
    ("beside", "references", "meta"),
    [
        ({"gt": "Yes"}, ("Yes",), {}),
        ({"gt": ["A", "B"], "index2ans": {"A": "red"}}, ("A", "B"), {"index2ans": {"A": "red"}}),
        (
            {"gt": "B", "all_choices": ["A", "B"], "index2ans": {"B": "blue", "A": "red"}},
            ("B",),
            {"all_choices": ["A", "B"], "index2ans": {"B": "blue", "A": "red"}, "options": ["red", "blue"]},
        ),
        (
            {"gt": "B", "all_choices": ["A", "C"], "index2ans": {"A": "red"}},
            ("B",),
            {"all_choices": ["A", "C"], "index2ans": {"A": "red"}},
        ),
        # Their script divides by 999 and multiplies by the image's sides to come from the answer back to pixels.
        ({"bbox": [64.0, 120, 320, 480], "hw": [480, 640]}, ("(100,250),(500,999)",), {"bbox": [64.0, 120, 320, 480], "hw": [480, 640]}),
        ({"bbox": [-5, 0, 700, 10], "hw": [480, 640]}, ("(0,0),(999,21)",), {"bbox": [-5, 0, 700, 10], "hw": [480, 640]}),
    ],
)  # fmt: skip
def test_an_answer_beside_the_question_becomes_the_reply(beside, references, meta):
    draft = convert(asked(**beside))
    assert draft.messages[1] == Message("assistant", (text(references[0]),))
    assert (draft.references, draft.meta) == (references, meta)


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({}, "empty_answer"),
        ({"gt": None}, "empty_answer"),
        ({"bbox": [1, 2, 3, 4]}, "empty_answer"),
        ({"gt": []}, "empty_answer"),
        ({"gt": 3}, "bad_schema"),
        ({"gt": ""}, "empty_answer"),
        ({"bbox": [1, 2, 3], "hw": [5, 5]}, "bad_schema"),
        ({"bbox": [1, 2, 3, True], "hw": [5, 5]}, "bad_schema"),
        ({"bbox": "box", "hw": [5, 5]}, "bad_schema"),
        ({"bbox": [1, 2, 3, 4], "hw": [0, 5]}, "bad_schema"),
        ({"bbox": [1, 2, 3, float("nan")], "hw": [5, 5]}, "bad_schema"),
    ],
)
def test_a_question_without_an_answer(beside, reason):
    with pytest.raises(RecordError) as caught:
        convert(asked(**beside))
    assert caught.value.reason == reason


def test_what_stands_beside_a_reply_is_no_answer():
    draft = convert(record([said("Really?")], gt="No", hw=[1, 1]))
    assert draft.messages[-1] == ANSWER
    assert (draft.references, draft.meta) == ((), {"gt": "No", "hw": [1, 1]})


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_an_answer_without_text(answer):
    source = record([said("What?")])
    source["messages"][1]["content"][0]["text"] = answer
    with pytest.raises(RecordError, match="empty_answer"):
        convert(source)


def test_what_stands_beside_is_kept_but_for_bytes():
    source = record([VIDEO, IMAGE, said("What?")], video={"path": "v.mp4", "num_frames": 8, "fps": 25}, icon=b"x")
    source["images"] = [{"bytes": b"\x89", "path": "a.png", "width": 3}]
    source["messages"][1] |= {"id": 1, "loss": False}
    draft = convert(source)
    assert draft.media == (
        MediaReference("video", "v.mp4", num_frames=8),
        MediaReference("image", "a.png", content=b"\x89"),
    )
    assert draft.meta == {"images": {"0": {"width": 3}}, "video": {"fps": 25}, "messages": {"1": {"id": 1}}}
    assert draft.messages[1].train is False
    assert draft.repairs == ("bytes_dropped",)


@pytest.mark.parametrize("more", [{"rejected": "a"}, {"label": True}, {"videos": []}, {"images": "a.jpg"}])
def test_what_is_something_else(more):
    assert FORMAT.matches(record([said("What?")]))
    assert not FORMAT.matches(record([said("What?")]) | more)


@pytest.mark.parametrize(
    ("source", "marked"),
    [
        (record([said("What?")]), False),
        (record([IMAGE]), True),
        (record([said("What?")], video={"path": "v.mp4"}), True),
        (record([{"type": "image", "path": "a.jpg"}]), False),
        ({"messages": None, "video": {"path": "v.mp4"}}, False),
        ("text", False),
    ],
)
def test_marks(source, marked):
    assert FORMAT.marks(source) is marked


def test_the_source_record_is_left_as_it_was():
    source = record([IMAGE, said("What?")], images=["a.jpg"])
    before = copy.deepcopy(source)
    convert(source)
    assert source == before


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    source=mutations(
        FORMAT.example,
        record([VIDEO], video={"path": "v.mp4", "num_frames": 8}),
        asked(bbox=[1, 2, 3, 4], hw=[5, 6]),
        asked(gt="Yes"),
    )
)
def test_only_record_errors_are_raised(source):
    convert_or_reject(FORMAT, source)
