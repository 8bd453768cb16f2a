"""LLaVA records and their relatives against canonical ones written by hand, and the rules for every conversation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats.chat import llava
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


def test_system_prompt_image_and_video_in_one_record():
    source = record(("human", "<video> and <image>?"), TELL, system_prompt="Look.", image="a.jpg", video="v.mp4")
    assert convert(source) == Draft(
        messages=(
            Message("system", (text("Look."),)),
            Message("user", (video(0), text(" and "), image(1), text("?"))),
            Message("assistant", (text("A cat."),)),
        ),
        media=(MediaReference("video", "v.mp4"), MediaReference("image", "a.jpg")),
    )


def test_m4_instruct():
    told = {
        "sample_id": 7,
        "metadata": {"dataset": "pairs", "question_type": "multi-choice"},
        "choice_list": ["a", "b"],
    }
    draft = convert(record(("human", "<image><image>Which?"), ("gpt", "a"), image=["1.jpg", "2.jpg"], **told))
    assert draft.messages[0].content == (image(0), image(1), text("Which?"))
    assert draft.meta == told
    assert draft.references == ()


def test_llava_video_calls_a_video_an_image():
    source = record(("human", "<image>\nWhat happens?"), TELL, video="academic/a.mp4", data_source="0_30_s", id="a")
    draft = convert(source)
    assert draft.messages[0].content == (video(0), text("\nWhat happens?"))
    assert draft.media == (MediaReference("video", "academic/a.mp4"),)
    assert draft.meta == {"data_source": "0_30_s", "id": "a"}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What?", "A cat.\nQA_GT_caption_based_noisy"),
        ("What?", "A cat.QA_GT_caption_based_noisy"),
        ("What?\nQA_GT_caption_based_noisy", "A cat."),
    ],
)
def test_the_marker_of_noise_is_taken_out_of_the_text(question, answer):
    draft = convert(record(("human", f"<video>{question}"), ("gpt", answer), video="v"))
    assert draft.messages[0].content == (video(0), text("What?"))
    assert draft.messages[1].content == (text("A cat."),)
    assert draft.repairs == ("noise_marker_removed",)


def test_an_answer_of_noise_alone_is_empty():
    with pytest.raises(RecordError, match="empty_answer"):
        convert(record(ASK, ("gpt", "\nQA_GT_caption_based_noisy")))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("a.jpg", MediaReference("image", "sets/one/a.jpg", alternatives=("a.jpg",))),
        ("../a.jpg", MediaReference("image", "sets/one/../a.jpg", alternatives=("../a.jpg",))),
        ("/data/a.jpg", MediaReference("image", "/data/a.jpg")),
        ("https://host/a.jpg", MediaReference("image", "https://host/a.jpg")),
        ("data:image/png;base64,AA==", MediaReference("image", "data:image/png;base64,AA==")),
        ({"bytes": b"x", "path": "a.jpg"}, MediaReference("image", "a.jpg", content=b"x")),
    ],
)
def test_data_path_goes_in_front_of_names(name, reference):
    draft = convert(record(("human", "<image>"), TELL, image=name, data_path="sets/one/"))
    assert draft.media == (reference,)
    assert draft.meta == {}


def test_without_a_data_path_names_are_as_they_are():
    assert convert(record(ASK, TELL, video="v", data_path="")).media == (MediaReference("video", "v"),)


class TestPackedRecords:
    def test_each_is_a_conversation(self):
        packed = [record(ASK, TELL, image="a.jpg", id=1), record(("human", "<video>"), TELL, video="v.mp4")]
        assert list(FORMAT.convert(packed)) == [*FORMAT.convert(packed[0]), *FORMAT.convert(packed[1])]

    def test_a_bad_one_does_not_lose_the_others(self):
        packed = [record(ASK, TELL), record(ASK, TELL, image=5), "text", record(ASK, TELL)]
        candidates = list(FORMAT.convert(packed))
        assert [type(candidate) for candidate in candidates] == [Draft, RecordError, RecordError, Draft]
        assert [candidate.reason for candidate in candidates[1:3]] == ["bad_schema", "bad_schema"]
        assert "item 2" in candidates[2].detail

    def test_an_empty_one_is_bad(self):
        with pytest.raises(RecordError, match="bad_schema"):
            list(FORMAT.convert([]))


@pytest.mark.parametrize(
    ("source", "matched"),
    [
        (record(ASK, TELL), True),
        ({"conversations": None}, True),
        ([record(ASK, TELL), record(ASK, TELL)], True),
        ([record(ASK, TELL), {}], False),
        ([], False),
        ([{"from": "human", "value": "a"}], False),
        ({"conversation": [{"from": "human", "value": "a"}]}, False),
        ({"conversations": [{"role": "user", "content": "a"}]}, False),
        (record(ASK, chosen={"from": "gpt", "value": "a"}, rejected={"from": "gpt", "value": "b"}), False),
        (record(ASK, TELL, label=True), False),
        ("text", False),
    ],
)
def test_matches(source, matched):
    assert FORMAT.matches(source) is matched


def test_bytes_of_a_table_stay_out_of_the_metadata():
    images = [{"bytes": b"x", "path": None, "size": 3}]
    draft = convert(record(("human", "<image>"), TELL, images=images, thumbnail=b"y"))
    assert draft.media == (MediaReference("image", "images[0]", content=b"x"),)
    assert draft.meta == {"images": {"0": {"size": 3}}}
    assert draft.repairs == ("bytes_dropped",)


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
        (record(ASK, TELL, data_path=["a"]), "bad_schema"),
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


WHOLE = record(("human", "<image>What?<video>"), TELL, image=["a.jpg"], video="v.mp4", system="s", data_path="f", id=1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(source=mutations(WHOLE, [WHOLE, WHOLE], more_keys=("path",)))
def test_only_record_errors_are_raised(source):
    convert_or_reject(FORMAT, source)


PIECE = st.sampled_from(
    ["<image>", "<video>", "\n", " ", "a", "b<", "QA_GT_caption_based_noisy", "<|im_end|>", "\ud800"]
)
USUAL = st.fixed_dictionaries(
    {
        "conversations": st.lists(
            st.fixed_dictionaries(
                {
                    "from": st.sampled_from(["human", "gpt", "system"]),
                    "value": st.lists(PIECE, max_size=4).map("".join),
                },
                optional={"weight": st.integers(0, 1)},
            ),
            max_size=4,
        )
    },
    optional={
        "id": st.none() | st.text(max_size=3),
        "image": st.sampled_from(["a.jpg", "", None, ["a.jpg"]]),
        "n": st.floats(),
    },
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(USUAL)
def test_the_usual_record_is_converted_as_any_other(record):
    quick = llava._usual_conversation(record)
    if quick is not None:
        assert repr(quick) == repr(llava._any_conversation(record, "the record"))


def test_the_usual_record_goes_the_quick_way():
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A < b"}]
    assert llava._usual_conversation({"id": "1", "image": "a.jpg", "conversations": turns}) is not None
    assert llava._usual_conversation({"id": "1", "conversations": turns[1:]}) is not None
