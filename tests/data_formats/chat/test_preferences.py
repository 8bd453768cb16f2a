"""Preferences are refused by name, and their chosen side is what it would be as instruction data."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building.fields import json_text
from aria_finetune.data_formats.chat import alpaca, anthropic, aria, llava, messages, plain_text, swift, xtuner
from aria_finetune.data_formats.chat.preferences import FORMATS, KTO, PREFERENCE, RL_PROMPTS
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Context, Settings
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

TAKING = Context(settings=Settings(take="chosen"))
ALL = (
    *FORMATS,
    *alpaca.FORMATS,
    *swift.FORMATS,
    anthropic.FORMAT,
    aria.FORMAT,
    llava.FORMAT,
    messages.FORMAT,
    plain_text.FORMAT,
    xtuner.FORMAT,
)


def message(role, text, train=None):
    return Message(role, (Part("text", text),), train)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def convert(form, record, **options):
    (draft,) = form.convert(record, TAKING)
    return checked(draft, **options)


def reason(form, record):
    with pytest.raises(RecordError) as caught:
        convert(form, record)
    return caught.value.reason


ASK, GOOD, BAD = user("What?"), assistant("A cat."), assistant("A dog.")
TURNS = (message("user", "What?"), message("assistant", "A cat."))


class TestPairs:
    @pytest.mark.parametrize(
        ("record", "meta"),
        [
            ({"prompt": "What?", "chosen": "A cat.", "rejected": "A dog.", "id": 1}, {"rejected": "A dog.", "id": 1}),
            ({"question": "What?", "chosen": "A cat.", "rejected": "A dog."}, {"rejected": "A dog."}),
            ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, {"rejected": [BAD]}),
            ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, {"rejected": [ASK, BAD]}),
            (
                {"prompt": "What?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK, GOOD]},
                {"prompt": "What?", "rejected": [ASK, BAD]},
            ),
            (
                {"chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK]},
                {"rejected": [ASK, BAD], "messages_beside": [ASK]},
            ),
            ({"messages": [ASK], "chosen": GOOD, "rejected": BAD}, {"rejected": BAD}),
            ({"conversation": [ASK], "chosen": [GOOD], "rejected": [BAD]}, {"rejected": [BAD]}),
            (
                {
                    "conversations": [{"from": "human", "value": "What?"}],
                    "chosen": {"from": "gpt", "value": "A cat."},
                    "rejected": {"from": "gpt", "value": "A dog."},
                },
                {"rejected": {"from": "gpt", "value": "A dog."}},
            ),
            (
                {"instruction": "What?", "input": "", "chosen": "A cat.", "rejected": "A dog."},
                {"rejected": "A dog."},
            ),
            ({"query": "What?", "chosen": "A cat.", "rejected": "A dog."}, {"rejected": "A dog."}),
            ({"messages": [ASK, GOOD], "rejected_response": "A dog."}, {"rejected_response": "A dog."}),
            ({"messages": [ASK, GOOD], "rejected_messages": [ASK, BAD]}, {"rejected_messages": [ASK, BAD]}),
            ({"query": "What?", "response": "A cat.", "rejected_response": "A dog."}, {"rejected_response": "A dog."}),
            (
                {"conversation": [{"human": "What?", "assistant": "A cat."}], "rejected_response": "A dog."},
                {"rejected_response": "A dog."},
            ),
            (
                {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
                {"non_preferred_output": [BAD]},
            ),
        ],
    )
    def test_the_chosen_side_is_kept_and_the_rejected_one_is_metadata(self, record, meta):
        assert registry.detect([record], ALL) is PREFERENCE
        assert convert(PREFERENCE, record) == Draft(TURNS, meta=meta)

    def test_tools_of_openai(self):
        given = {"messages": [ASK], "tools": [{"name": "f"}], "parallel_tool_calls": True}
        draft = convert(PREFERENCE, {"input": given, "preferred_output": [GOOD], "non_preferred_output": [BAD]})
        assert draft.tools == json_text([{"name": "f"}])
        assert draft.meta == {"parallel_tool_calls": True, "non_preferred_output": [BAD]}

    def test_images(self):
        record = {
            "question": "<image>What?",
            "image": {"bytes": b"\x89", "path": None},
            "chosen": "A cat.",
            "rejected": "",
        }
        draft = convert(PREFERENCE, record)
        assert draft.messages[0].content == (Part("image", media=0), Part("text", "What?"))
        assert draft.media == (MediaReference("image", "image", content=b"\x89"),)

    def test_rejected_images_leave_no_bytes(self):
        record = {
            "messages": [user("<image>What?"), GOOD],
            "images": ["a.jpg"],
            "rejected_images": [{"bytes": b"\x89", "path": "b.jpg"}],
        }
        draft = convert(PREFERENCE, record)
        assert draft.meta == {"rejected_images": [{"path": "b.jpg"}]}
        assert draft.repairs == ("bytes_dropped",)

    def test_the_turns_of_a_longer_prompt_are_not_trained_on(self):
        record = {"prompt": [user("a"), assistant("b"), ASK], "chosen": [GOOD], "rejected": [BAD]}
        assert convert(PREFERENCE, record).messages == (
            message("user", "a"),
            message("assistant", "b", train=False),
            *TURNS,
        )

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ({"chosen": "A cat.", "rejected": "A dog."}, "bad_roles"),
            ({"chosen": [GOOD], "rejected": [BAD]}, "bad_roles"),
            ({"prompt": "What?", "rejected": "A dog."}, "bad_schema"),
            ({"prompt": "What?", "chosen": 3, "rejected": "A dog."}, "bad_schema"),
            ({"prompt": "What?", "chosen": "", "rejected": "A dog."}, "empty_answer"),
            ({"messages": "What?", "chosen": GOOD, "rejected": BAD}, "bad_schema"),
            ({"messages": [ASK], "chosen": "A cat.", "rejected": BAD}, "bad_schema"),
            ({"input": "What?", "preferred_output": [GOOD]}, "bad_schema"),
            ({"input": {"messages": [ASK]}, "preferred_output": GOOD}, "bad_schema"),
            ({"preferred_output": [GOOD]}, "bad_schema"),
            ({"prompt": "<audio>", "audio": "a.wav", "chosen": "a", "rejected": "b"}, "unsupported_modality"),
            (["a"], "bad_schema"),
        ],
    )
    def test_bad_records(self, record, expected):
        assert reason(PREFERENCE, record) == expected


class TestLabelled:
    @pytest.mark.parametrize(
        ("record", "meta"),
        [
            ({"prompt": "What?", "completion": "A cat.", "label": True}, {"label": True}),
            ({"prompt": "What?", "completion": "A cat.", "label": 1}, {"label": 1}),
            ({"prompt": "What?", "completion": "A cat.", "label": "True"}, {"label": "True"}),
            ({"prompt": [ASK], "completion": [GOOD], "label": True}, {"label": True}),
            ({"messages": [ASK, GOOD], "label": True}, {"label": True}),
            ({"messages": [ASK, GOOD], "kto_tag": True}, {"kto_tag": True}),
            ({"query": "What?", "response": "A cat.", "label": True}, {"label": True}),
            ({"instruction": "What?", "input": "", "output": "A cat.", "kto_tag": True}, {"kto_tag": True}),
            ({"instruction": "What?", "response": "A cat.", "label": True}, {"label": True}),
            (
                {
                    "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}],
                    "kto_tag": True,
                },
                {"kto_tag": True},
            ),
        ],
    )
    def test_wanted_answers_are_kept(self, record, meta):
        assert registry.detect([record], ALL) is KTO
        assert convert(KTO, record) == Draft(TURNS, meta=meta)

    @pytest.mark.parametrize("label", [False, 0, "false"])
    def test_unwanted_answers_are_rejected(self, label):
        record = {"prompt": "What?", "completion": "A dog.", "label": label}
        assert reason(KTO, record) == "bad_schema"
        with pytest.raises(RecordError, match="one not to give"):
            convert(KTO, record)

    @pytest.mark.parametrize("label", [None, 2, "good", [True], {"a": 1}])
    def test_a_label_that_says_neither(self, label):
        with pytest.raises(RecordError, match="no label says"):
            convert(KTO, {"prompt": "What?", "completion": "A cat.", "label": label})

    def test_two_labels_that_differ(self):
        with pytest.raises(RecordError, match="no label says"):
            convert(KTO, {"messages": [ASK, GOOD], "label": True, "kto_tag": False})

    def test_bad_records(self):
        assert reason(KTO, {"label": True}) == "bad_roles"
        assert reason(KTO, {"messages": [ASK], "label": True}) == "empty_answer"
        assert reason(KTO, []) == "bad_schema"


class TestPrompts:
    @pytest.mark.parametrize(
        ("record", "references", "meta"),
        [
            ({"prompt": "What?"}, (), {}),
            (
                {"prompt": [ASK], "reward_model": {"style": "rule", "ground_truth": "42"}, "data_source": "d"},
                ("42",),
                {"reward_model": {"style": "rule", "ground_truth": "42"}, "data_source": "d"},
            ),
            ({"prompt": "What?", "solution": ["a", "b"]}, ("a", "b"), {"solution": ["a", "b"]}),
            ({"prompt": "What?", "ground_truth": 4.5}, ("4.5",), {"ground_truth": 4.5}),
        ],
    )
    def test_prompts_are_questions_for_evaluation(self, record, references, meta):
        assert registry.detect([record], ALL) is RL_PROMPTS
        expected = Draft(TURNS[:1], references=references, meta=meta)
        assert convert(RL_PROMPTS, record, evaluation=True) == expected
        assert reason(RL_PROMPTS, record) == "empty_answer"

    def test_images(self):
        record = {"prompt": [user("<image>What?")], "images": [{"bytes": b"\x89", "path": "a"}], "reward_model": {}}
        assert convert(RL_PROMPTS, record, evaluation=True).media == (MediaReference("image", "a", content=b"\x89"),)

    def test_bad_records(self):
        assert reason(RL_PROMPTS, {"prompt": 3}) == "bad_schema"
        assert reason(RL_PROMPTS, {"reward_model": {}}) == "bad_schema"


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([{"messages": [ASK, GOOD], "rejected_response": None}], "messages"),
        ([{"messages": [ASK, GOOD], "rejected_response": None}, {"messages": [ASK, GOOD], "rejected_response": "a"}], "preference"),
        ([{"query": "a", "response": "b", "rejected_response": None}], "swift"),
        ([{"messages": [ASK, GOOD], "label": 1}], "messages"),
        ([{"messages": [ASK, GOOD], "label": None}], "messages"),
        ([{"prompt": "a", "completion": "b"}], "prompt-completion"),
        ([{"prompt": "a", "completion": "b", "label": None}], "prompt-completion"),
    ],
)  # fmt: skip
def test_columns_that_say_nothing_do_not_make_preferences(records, name):
    assert registry.detect(records, ALL).name == name


@pytest.mark.parametrize(
    "record",
    [
        {"text": "a", "label": True},
        {"id": 1, "images": [], "prompt": "a", "labels": {"x": 1.0}},
        {"prompt": "a", "x": 1},
    ],
)
def test_what_is_something_else(record):
    assert not any(form.matches(record) for form in FORMATS)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_example_is_of_its_format_and_the_format_is_refused(form):
    assert registry.detect([form.example], ALL) is form
    assert convert(form, form.example, evaluation=True).messages[0].role == "user"
    assert form.refused


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    record=mutations(
        *(form.example for form in FORMATS),
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": "c"},
        {"messages": [ASK, GOOD], "rejected_response": "c", "label": True, "kto_tag": True, "query": "a"},
        {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "instruction": "a", "response": "b"},
    )
)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_only_record_errors_are_raised(form, record):
    convert_or_reject(form, record, TAKING)
