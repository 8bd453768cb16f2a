"""Chat messages in their many spellings against canonical records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats.building.fields import json_text
from aria_finetune.data_formats.chat.messages import FORMAT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked


def text(content):
    return Part("text", text=content)


def convert(record):
    (draft,) = FORMAT.convert(record)
    return checked(draft)


def user(content):
    return {"role": "user", "content": content}


TELL = {"role": "assistant", "content": "A cat."}
TOLD = Message("assistant", (text("A cat."),))
IMAGE, VIDEO = Part("image", media=0), Part("video", media=0)
DATA_URI = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("part", "reference"),
    [
        ({"type": "image_url", "image_url": {"url": "https://host/a.png"}}, "https://host/a.png"),
        ({"type": "image_url", "image_url": "a.png"}, "a.png"),
        ({"type": "image_url", "image_url": {"url": DATA_URI}}, DATA_URI),
        ({"type": "image_url", "value": "a.png"}, "a.png"),
        ({"type": "image", "image": "a.png"}, "a.png"),
        ({"type": "image", "path": "a.png"}, "a.png"),
        ({"type": "image", "url": "file:///a.png"}, "file:///a.png"),
        ({"type": "image", "image": {"url": "a.png"}}, "a.png"),
        ({"type": "image", "image": None, "path": "a.png"}, "a.png"),
        ({"type": "image", "base64": "iVBORw0KGgo="}, "data:application/octet-stream;base64,iVBORw0KGgo="),
        ({"type": "image", "base64": DATA_URI}, DATA_URI),
    ],
)
def test_image_parts(part, reference):
    draft = convert({"messages": [user([part, {"type": "text", "text": "What?"}]), TELL]})
    assert draft == Draft((Message("user", (IMAGE, text("What?"))), TOLD), (MediaReference("image", reference),))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": "v.mp4"},
        {"type": "video", "path": "v.mp4"},
        {"type": "video_url", "video_url": {"url": "v.mp4"}},
    ],
)
def test_video_parts(part):
    draft = convert({"messages": [user([{"type": "text", "text": "What?"}, part]), TELL]})
    assert draft == Draft((Message("user", (text("What?"), VIDEO)), TOLD), (MediaReference("video", "v.mp4"),))


def test_bare_parts_take_the_column():
    content = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image", "text": None}, {"type": "video"}]
    draft = convert({"messages": [user(content), TELL], "images": ["a.png", {"path": "b.png"}], "videos": ["v.mp4"]})
    assert draft.messages[0].content == (
        Part("image", media=0),
        text("and"),
        Part("image", media=1),
        Part("video", media=2),
    )
    assert [medium.reference for medium in draft.media] == ["a.png", "b.png", "v.mp4"]


@pytest.mark.parametrize(
    ("content", "columns", "expected"),
    [
        ("<image>What?", {"images": ["a"]}, (IMAGE, text("What?"))),
        ("What?\n<video>", {"videos": ["v"]}, (text("What?\n"), VIDEO)),
        ([{"type": "text", "text": "<image>What?"}], {"images": ["a"]}, (IMAGE, text("What?"))),
        ([{"type": "text", "value": "<image>What?"}], {"image": "a"}, (IMAGE, text("What?"))),
    ],
)
def test_placeholders_take_the_column(content, columns, expected):
    draft = convert({"messages": [user(content), TELL], **columns})
    assert draft.messages[0].content == expected
    assert draft.repairs == ()


@pytest.mark.parametrize("content", ["What?", [{"type": "text", "text": "What?"}]])
def test_a_column_without_a_place_goes_first(content):
    draft = convert({"conversation": [user(content), TELL], "video": "v.mp4"})
    assert draft.messages[0].content == (VIDEO, text("What?"))
    assert draft.repairs == ("placeholder_added",)


@pytest.mark.parametrize(
    "content", ["How do I use <video>?", [{"type": "text", "text": "<image>"}, {"type": "image", "path": "a.png"}]]
)
def test_placeholders_without_a_column_are_text(content):
    draft = convert({"messages": [user(content), TELL]})
    assert draft.repairs == ("placeholder_kept_as_text",)
    assert "<" in draft.messages[0].content[0].text


def test_roles_system_column_and_training_flags():
    record = {
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "a", "name": "eva"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "weight": 1},
            {"role": "user", "content": "e"},
            {"role": "assistant", "content": "f", "loss": False},
            {"role": "assistant", "content": "g", "train": False},
        ],
        "id": 3,
    }
    draft = convert(record)
    assert [(message.role, message.train) for message in draft.messages] == [
        ("system", None),
        ("user", None),
        ("assistant", False),
        ("user", None),
        ("assistant", True),
        ("user", None),
        ("assistant", False),
        ("assistant", False),
    ]
    assert draft.meta == {"id": 3, "messages": {"0": {"name": "eva"}}}


def test_developer_is_system():
    draft = convert({"messages": [{"role": "developer", "content": "x"}, user("a"), TELL]})
    assert draft.messages[0] == Message("system", (text("x"),))


def test_tool_calls_become_text():
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "ü"}'}}]
    written = '[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": \\"ü\\"}"}}]'
    record = {
        "messages": [
            user("a"),
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "1", "content": "7"},
            {"role": "assistant", "content": "Wait.", "tool_calls": calls},
            {"role": "tool", "content": [{"type": "text", "text": "8"}]},
            TELL,
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    draft = convert(record)
    assert [message.content for message in draft.messages[1:5]] == [
        (text(written),),
        (text("7"),),
        (text(f"Wait.\n{written}"),),
        (text("8"),),
    ]
    assert draft.tools == '[{"type": "function", "function": {"name": "f"}}]'
    assert draft.meta == {"messages": {"2": {"tool_call_id": "1"}}}


def test_the_older_function_call():
    call = {"name": "f", "arguments": "{}"}
    turn = {"role": "assistant", "content": None, "function_call": call}
    draft = convert({"messages": [user("a"), turn], "functions": [{"name": "f"}]})
    assert draft.messages[1].content == (text(json_text(call)),)
    assert (draft.tools, draft.meta) == (json_text([{"name": "f"}]), {})


def test_calls_of_both_kinds_are_lines():
    turn = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "function_call": {"name": "f"}}
    written = "\n".join([json_text([{"id": "1"}]), json_text({"name": "f"})])
    assert convert({"messages": [user("a"), turn]}).messages[1].content == (text(written),)


def test_messages_in_a_cell_are_json_text():
    assert convert(
        {"messages": '[{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]'}
    ) == (Draft((Message("user", (text("What?"),)), TOLD)))


PNG = b"\x89PNG"


@pytest.mark.parametrize(
    ("part", "columns", "medium"),
    [
        (
            {"type": "image", "image": {"bytes": PNG, "path": None}},
            {},
            MediaReference("image", "messages[0].content[0].image", content=PNG),
        ),
        ({"type": "image", "image": {"bytes": None, "path": "a.png"}}, {}, MediaReference("image", "a.png")),
        ({"type": "video", "video": {"bytes": PNG, "path": "v.mp4"}}, {}, MediaReference("video", "v.mp4", content=PNG)),
        ({"type": "image"}, {"images": [PNG]}, MediaReference("image", "images[0]", content=PNG)),
        ({"type": "text", "text": "<video>"}, {"video": {"bytes": PNG, "path": None}}, MediaReference("video", "video", content=PNG)),
    ],
)  # fmt: skip
def test_media_that_a_table_holds(part, columns, medium):
    record = {"messages": [user([part]), TELL], **columns}
    assert FORMAT.matches(record)
    draft = convert(record)
    assert (draft.media, draft.meta, draft.repairs) == ((medium,), {}, ())


def test_what_stands_beside_is_kept_but_for_bytes():
    image = {"type": "image", "image": {"bytes": PNG, "path": "a.png", "width": 3}, "thumb": PNG}
    draft = convert({"messages": [user([image]), TELL | {"icon": PNG, "id": 1}], "more": [{"raw": PNG, "n": 1}]})
    assert draft.meta == {"more": [{"n": 1}], "messages": {"1": {"id": 1}}, "parts": {"0.0": {"width": 3}}}
    assert draft.repairs == ("bytes_dropped",)
    draft = convert({"messages": [user("<image>"), TELL], "images": [{"path": "a.png", "height": 4}]})
    assert draft.meta == {"images": {"0": {"height": 4}}}


def test_boxes_are_kept_with_their_coordinate_system():
    objects = {"ref": ["a cat"], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"}
    record = {"messages": [user("<image>Find <ref-object>."), {"role": "assistant", "content": "<bbox>"}]}
    draft = convert(record | {"images": ["a.png"], "objects": objects})
    assert draft.meta == {"objects": objects | {"coordinates": "xyxy 0-1"}}
    assert draft.repairs == ("box_placeholder_kept_as_text",)


@pytest.mark.parametrize(
    ("record", "fits"),
    [
        ([user("a")], True),
        ([user("a"), "b"], False),
        ([{"content": "a"}], False),
        ([], False),
        ({"messages": None}, True),
        ({"conversations": [user("a")]}, True),
        ({"conversation": [user("a")], "messages": None}, True),
        ({"conversation": [user("a")], "messages": [user("b")]}, False),
        ({"conversations": [{"from": "human", "value": "a"}]}, False),
        ({"text": "a"}, False),
        ("a", False),
    ],
)
def test_what_is_chat(record, fits):
    assert FORMAT.matches(record) is fits


@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ({}, True),
        ({"label": 1}, True),
        ({"rejected_response": None}, True),
        ({"rejected_response": "a"}, False),
        ({"chosen": TELL}, False),
        ({"label": False}, False),
        ({"kto_tag": True}, False),
        ({"video": {"path": "v.mp4", "num_frames": 8}}, False),
        ({"video": {"bytes": None, "path": "v.mp4"}}, True),
    ],
)
def test_preferences_and_videos_of_aria_are_something_else(more, fits):
    assert FORMAT.matches({"messages": [user("a"), TELL]} | more) is fits


def test_a_bare_list_of_messages():
    assert convert([user("What?"), TELL]).messages == (Message("user", (text("What?"),)), TOLD)


def test_what_a_part_says_beside_its_name_is_kept():
    part = {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}, "min_pixels": 9}
    assert convert({"messages": [user([part]), TELL]}).meta == {"parts": {"0.0": {"min_pixels": 9, "detail": "low"}}}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [user([{"type": "image"}]), TELL]}, "placeholder_mismatch"),
        ({"messages": [user([{"type": "image"}]), TELL], "images": ["a", "b"]}, "placeholder_mismatch"),
        ({"messages": [user("<image>"), TELL], "images": []}, "placeholder_mismatch"),
        ({"messages": [user("<image>"), TELL], "images": ["a", "b"]}, "placeholder_mismatch"),
        ({"messages": [user([{"type": "image", "path": "a"}]), TELL], "images": ["a"]}, "placeholder_mismatch"),
        (
            {"messages": [user([{"type": "image", "path": "a"}, {"type": "text", "text": "<IMG_CONTEXT>"}]), TELL]},
            "placeholder_mismatch",
        ),
        ({"messages": [user([{"type": "input_audio", "input_audio": {}}]), TELL]}, "unsupported_modality"),
        ({"messages": [user([{"type": "audio_url", "audio_url": {"url": "a"}}]), TELL]}, "unsupported_modality"),
        ({"messages": [user([{"type": "file"}]), TELL]}, "unsupported_modality"),
        ({"messages": [user("<audio>"), TELL], "audios": ["a.wav"]}, "unsupported_modality"),
        ({"messages": [user([{"text": "x"}]), TELL]}, "bad_schema"),
        ({"messages": [user([{"type": "image", "path": "a", "url": "b"}]), TELL]}, "bad_schema"),
        ({"messages": [user([{"type": "image_url"}]), TELL]}, "bad_schema"),
        ({"messages": [user([{"type": "image_url", "image_url": {}}]), TELL]}, "bad_schema"),
        ({"messages": [user([{"type": "image", "path": ""}]), TELL]}, "bad_schema"),
        ({"messages": [user([{"type": ["text"], "text": "a"}]), TELL]}, "unsupported_modality"),
        ({"messages": [user(None), TELL]}, "bad_schema"),
        ({"messages": [user({"text": "a"}), TELL]}, "bad_schema"),
        ({"messages": [{"role": "user"}, TELL]}, "bad_schema"),
        ({"messages": [user("a"), {"role": "assistant", "content": "b", "weight": 0.5}]}, "bad_schema"),
        ({"messages": [user("a"), {"role": "assistant", "content": "b", "weight": 1, "train": False}]}, "bad_schema"),
        ({"messages": None}, "bad_schema"),
        ({"messages": "[{'role': 'user', 'content': 'a'}]"}, "bad_schema"),
        ({"messages": "7"}, "bad_schema"),
        ({"messages": [user("a"), TELL], "tools": [1], "functions": [2]}, "bad_schema"),
        ({"messages": [user("<image>"), TELL], "images": [{"bytes": None, "path": None}]}, "bad_schema"),
        ({"messages": [user("<image>"), TELL], "images": [{"bytes": 3, "path": "a"}]}, "bad_schema"),
        ({"messages": [TELL]}, "bad_roles"),
        ({"messages": [user("a")], "conversations": []}, "bad_schema"),
        ({}, "bad_schema"),
        ({"messages": [user("a"), {"role": "assistant", "content": None}]}, "empty_answer"),
        ({"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": []}]}, "empty_answer"),
        ({"messages": [user("a"), {"role": "assistant", "content": [{"type": "text", "text": " "}]}]}, "empty_answer"),
        ({"messages": [user("a"), {"role": ["assistant"], "content": "b"}]}, "bad_roles"),
        ({"messages": [user("a"), {"role": "critic", "content": "b"}, TELL]}, "bad_roles"),
        ({"messages": [user("a"), {"role": "assistant", "content": "\ud83d"}]}, "bad_text"),
    ],
)
def test_bad_records(record, reason):
    with pytest.raises(RecordError) as caught:
        convert(record)
    assert caught.value.reason == reason


PARTS = {
    "messages": [
        user([{"type": "image_url", "image_url": {"url": "a"}}, {"type": "image"}, {"type": "text", "value": "b"}]),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "weight": 1},
    ],
    "images": [{"bytes": None, "path": "a"}],
    "objects": {"bbox": [[1, 2]], "ref": [], "bbox_type": "real"},
}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(record=mutations(FORMAT.example, PARTS, [user("a"), TELL], words=("<bbox>", "image_url", "video_url")))
def test_only_record_errors_are_raised(record):
    convert_or_reject(FORMAT, record)
