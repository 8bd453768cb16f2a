"""LLaVA records and their relatives against canonical ones written by hand, and the rules for every conversation."""

import pytest

from aria_finetune.data_formats.chat.llava import FORMAT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import CONTROL_TOKENS, checked


def text(content):
    return Part("text", text=content)


def image(number):
    return Part("image", media=number)


def video(number):
    return Part("video", media=number)


def convert(record, **options):
    (draft,) = FORMAT.convert(record)
    return checked(draft, **options)


def record(*turns, **rest):
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], **rest}


ASK, TELL = ("human", "What?"), ("gpt", "A cat.")


def test_a_record_of_every_part():
    source = record(
        ("human", "<image>\nWho is it?"),
        ("gpt", "A cat."),
        ("human", "And here?<image>"),
        ("gpt", "A dog."),
        image=["a.jpg", "b.jpg"],
        system_prompt="Be brief.",
        id="x1",
        data_source="m4",
    )
    assert convert(source) == Draft(
        messages=(
            Message("system", (text("Be brief."),)),
            Message("user", (image(0), text("\nWho is it?"))),
            Message("assistant", (text("A cat."),)),
            Message("user", (text("And here?"), image(1))),
            Message("assistant", (text("A dog."),)),
        ),
        media=(MediaReference("image", "a.jpg"), MediaReference("image", "b.jpg")),
        meta={"id": "x1", "data_source": "m4"},
    )


@pytest.mark.parametrize(
    ("value", "media", "parts"),
    [
        ("Look: <image> here", {"image": "a"}, (text("Look: "), image(0), text(" here"))),
        ("<image><image>Same?", {"image": ["a", "b"]}, (image(0), image(1), text("Same?"))),
        ("<image><image>Same?", {"images": ["a", "a"]}, (image(0), image(0), text("Same?"))),
        ("<video>\nWhat?", {"video": "v"}, (video(0), text("\nWhat?"))),
        ("<video><video>", {"video": ["v", "w"]}, (video(0), video(1))),
        ("<image>\nWhat?", {"video": "v"}, (video(0), text("\nWhat?"))),
        ("<video><image>", {"image": "a", "video": "v"}, (video(0), image(1))),
        ("<image>", {"image": {"path": "a"}}, (image(0),)),
    ],
)
def test_placeholders_are_the_places_of_media(value, media, parts):
    draft = convert(record(("human", value), TELL, **media))
    assert draft.messages[0].content == parts
    assert draft.repairs == ()


def test_media_without_any_placeholder_go_first():
    source = record(("system", "Look."), ASK, TELL, video="v.mp4", image=["a.jpg"])
    draft = convert(source)
    assert draft.messages[1].content == (image(0), video(1), text("What?"))
    assert draft.repairs == ("placeholder_added",)


def test_line_breaks_between_images_are_dropped_and_counted():
    draft = convert(record(("human", "<image>\n<image>\nSame?"), TELL, image=["a", "b"]))
    assert draft.messages[0].content == (image(0), image(1), text("\nSame?"))
    assert draft.repairs == ("blank_text_dropped",)


def test_tool_turns_and_tools():
    tools = '[{"name": "f"}]'
    source = record(ASK, ("function_call", '{"name": "f"}'), ("observation", "7"), TELL, tools=tools)
    draft = convert(source)
    assert [message.role for message in draft.messages] == ["user", "assistant", "tool", "assistant"]
    assert draft.messages[1].content == (text('{"name": "f"}'),)
    assert draft.tools == tools


def test_media_may_be_null_and_turns_may_have_more():
    source = record(ASK, TELL, image=None, system="")
    source["conversations"][1] |= {"weight": 0, "model": "m"}
    draft = convert(source)
    assert draft.messages[1].train is False
    assert draft.meta == {"conversations": {"1": {"model": "m"}}}


def test_an_answer_about_tags_is_text():
    draft = convert(record(ASK, ("gpt", "Use <video> or <image>.")))
    assert draft.messages[1].content == (text("Use <video> or <image>."),)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (record(("human", "<image>What?"), TELL), "placeholder_mismatch"),
        (record(("human", "<image>What?"), TELL, image=["a", "b"]), "placeholder_mismatch"),
        (record(("human", "<image><image>"), TELL, image="a"), "placeholder_mismatch"),
        (record(("human", "<image>"), TELL, image="a", video="v"), "placeholder_mismatch"),
        (record(("human", "<video>"), TELL, image="a"), "placeholder_mismatch"),
        (record(("human", "<image><video>"), TELL, video=["v", "w"]), "placeholder_mismatch"),
        (record(TELL, ASK, TELL), "bad_roles"),
        (record(ASK, TELL, ASK), "bad_roles"),
        (record(ASK, ("system", "Be brief."), TELL), "bad_roles"),
        (record(("system", "a"), ASK, TELL, system="b"), "bad_roles"),
        (record(ASK, ("bing", "x"), TELL), "bad_roles"),
        (record(("observation", "x"), ASK, TELL), "bad_roles"),
        (record(), "bad_roles"),
        (record(("system", "a")), "bad_roles"),
        (record(ASK), "empty_answer"),
        (record(ASK, ("gpt", "")), "empty_answer"),
        (record(ASK, ("gpt", " \t\n")), "empty_answer"),
        (record(ASK, ("gpt", None)), "empty_answer"),
        (record(ASK, ("gpt", ""), ASK, TELL), "empty_answer"),
        (record(ASK, ("gpt", "<image>"), image="a"), "empty_answer"),
        (record(("human", None), TELL), "bad_schema"),
        (record(ASK, ("gpt", 3)), "bad_schema"),
        (record(ASK, ("gpt", ["A"])), "bad_schema"),
        (record(ASK, TELL, image=5), "bad_schema"),
        (record(ASK, TELL, image=["a", None]), "bad_schema"),
        (record(ASK, TELL, image=""), "bad_schema"),
        (record(ASK, TELL, image="a", images=["b"]), "bad_schema"),
        (record(ASK, TELL, video=[["f1.jpg", "f2.jpg"]]), "bad_schema"),
        (record(ASK, TELL, system=3), "bad_schema"),
        (record(ASK, TELL, system="a", system_prompt="b"), "bad_schema"),
        (record(ASK, TELL, tools="not JSON"), "bad_schema"),
        (record(ASK, TELL, audio="a.wav"), "unsupported_modality"),
        ({"conversations": None}, "bad_schema"),
        ({"conversations": ["What?"]}, "bad_schema"),
        ({"conversations": [{"from": "human"}]}, "bad_schema"),
        ({}, "bad_schema"),
        ("text", "bad_schema"),
        (record(ASK, ("gpt", "\udcff")), "bad_text"),
        (record(ASK, TELL, image="\udcff.jpg"), "bad_text"),
        (record(ASK, TELL, note={"\ud800": 1}), "bad_text"),
    ],
)
def test_bad_records(source, reason):
    with pytest.raises(RecordError) as caught:
        convert(source)
    assert caught.value.reason == reason


def test_turns_of_one_role_may_follow_each_other():
    draft = convert(record(ASK, ASK, TELL, TELL))
    assert [message.role for message in draft.messages] == ["user", "user", "assistant", "assistant"]


class TestEvaluation:
    @pytest.mark.parametrize("turns", [(ASK,), (ASK, TELL, ASK)])
    def test_the_last_answer_may_be_missing(self, turns):
        assert len(convert(record(*turns), evaluation=True).messages) == len(turns)

    def test_an_empty_last_answer_is_removed(self):
        draft = convert(record(ASK, ("gpt", "")), evaluation=True)
        assert [message.role for message in draft.messages] == ["user"]
        assert draft.repairs == ("empty_answer_removed",)

    @pytest.mark.parametrize(
        ("turns", "reason"),
        [((TELL,), "bad_roles"), ((ASK, ("gpt", ""), ASK), "empty_answer"), ((("gpt", ""),), "bad_roles")],
    )
    def test_other_faults_stay(self, turns, reason):
        with pytest.raises(RecordError, match=reason):
            convert(record(*turns), evaluation=True)


@pytest.mark.parametrize("token", CONTROL_TOKENS)
@pytest.mark.parametrize("in_answer", [True, False])
def test_control_tokens_are_kept_and_noticed(token, in_answer):
    turns = (ASK, ("gpt", f"a{token}b")) if in_answer else (("human", f"a{token}b"), TELL)
    draft = convert(record(*turns))
    assert draft.messages[int(in_answer)].content == (text(f"a{token}b"),)
    assert draft.repairs == ("control_token_in_text",)
