"""Records that `dataset_info.json` describes, spelled plainly and compared with ones written by hand."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import alpaca, llava, messages, plain_text, preferences
from aria_finetune.data_formats.chat.llama_factory import COMPANION, DatasetEntry, entry_for, renamed
from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.format import PLAIN
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


TABLE = {
    "one": {"file_name": "one.json"},
    "two": {
        "file_name": "two.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk"},
        "tags": OPENAI_TAGS,
    },
    "hub": {"hf_hub_url": "someone/two.json"},
    "dotted": {"file_name": "./dotted.json"},
}
COLUMNS = {"messages": "talk", "system": "rule", "tools": "functions", "images": "pictures"}
TAGS = {
    "role_tag": "who", "content_tag": "said", "user_tag": "Q", "assistant_tag": "A",
    "observation_tag": "R", "function_tag": "F", "system_tag": "S",
}  # fmt: skip


def entry(formatting="alpaca", columns=None, tags=None):
    table = {"set": {"file_name": "a.json", "formatting": formatting, "columns": columns, "tags": tags}}
    return entry_for(table, "a.json")


def turn(role, content):
    return {"role": role, "content": content}


class TestEntry:
    def test_the_one_that_names_the_file(self):
        assert entry_for(TABLE, "one.json") == DatasetEntry("one")
        assert entry_for(TABLE, "two.json") == DatasetEntry("two", "sharegpt", {"messages": "talk"}, OPENAI_TAGS)
        assert entry_for(TABLE, "dotted.json").name == "dotted"

    @pytest.mark.parametrize("name", ["three.json", "One.json", "sub/one.json", "someone/two.json"])
    def test_no_other_file(self, name):
        assert entry_for(TABLE, name) is None

    @pytest.mark.parametrize("table", [None, [], {}, {"a": 1}, {"a": {"file_name": ["a.json"]}}, {"features": {}}])
    def test_tables_that_say_nothing(self, table):
        assert entry_for(table, "a.json") is None

    def test_null_names_no_column(self):
        assert entry(columns={"prompt": "q", "query": None, "response": "a"}).columns == {
            "prompt": "q",
            "response": "a",
        }

    @pytest.mark.parametrize(
        "changed",
        [
            {"formatting": "parquet"},
            {"formatting": ["sharegpt"]},
            {"columns": ["prompt"]},
            {"columns": {"prompt": 3}},
            {"tags": {"role_tag": ["role"]}},
            {"columns": {"prompt": "text", "response": "text"}},
        ],
    )
    def test_a_malformed_one_is_named(self, changed):
        table = {"bad": {"file_name": "a.json", **changed}, "good": {"file_name": "b.json"}}
        with pytest.raises(FormatError, match="'bad'") as caught:
            entry_for(table, "a.json")
        assert caught.value.fix
        assert entry_for(table, "b.json").name == "good"

    def test_two_that_agree(self):
        assert entry_for({"a": {"file_name": "x"}, "b": {"file_name": "x", "ranking": False}}, "x").name == "a"

    def test_two_that_differ(self):
        table = {"a": {"file_name": "x"}, "b": {"file_name": "x", "formatting": "sharegpt"}}
        with pytest.raises(FormatError, match="'a' and 'b'"):
            entry_for(table, "x")


class TestPlain:
    @pytest.mark.parametrize(
        "plain",
        [
            entry(),
            entry(columns={"prompt": "instruction", "query": "input", "response": "output", "history": "history"}),
            entry(columns={"prompt": "text"}),
            entry("sharegpt"),
            entry("sharegpt", {"messages": "conversations", "tools": "tools"}),
            entry("sharegpt", {"messages": "messages", "images": "images"}, OPENAI_TAGS),
            entry("sharegpt", {"messages": "conversations", "videos": "videos"}, OPENAI_TAGS),
            entry("sharegpt", {"messages": "conversation"}, OPENAI_TAGS | {"system_tag": "system"}),
            entry("openai", {"messages": "messages"}, OPENAI_TAGS),
        ],
    )
    def test_records_are_left_as_they_are(self, plain):
        record = {"instruction": "a", "conversations": [{"from": "human", "value": "a"}], "other": 1}
        assert plain.is_plain
        assert renamed(record, plain) is record

    @pytest.mark.parametrize(
        "other",
        [
            entry(columns={"prompt": "question", "response": "output"}),
            entry(columns={"prompt": "content"}),
            entry("sharegpt", {"messages": "messages"}),
            entry("sharegpt", {"messages": "talk"}, OPENAI_TAGS),
            entry("sharegpt", {"messages": "conversations", "images": "pictures"}),
            entry("sharegpt", {"messages": "conversations"}, {"user_tag": "Q"}),
            entry("sharegpt", {"messages": "conversations"}, {"user_tag": "gpt", "assistant_tag": "human"}),
            entry("sharegpt", {"messages": "conversations"}, {"role_tag": "role"}),
        ],
    )
    def test_other_spellings(self, other):
        assert not other.is_plain

    @pytest.mark.parametrize("record", [None, "text", 3, [{"question": "a"}]])
    def test_what_is_no_object_stays(self, record):
        assert renamed(record, entry(columns={"prompt": "question"})) is record


class TestAlpaca:
    def test_columns(self):
        columns = {
            "prompt": "question", "query": "more", "response": "reply", "history": "before", "system": "rule",
            "tools": "functions", "images": "pictures", "videos": "clips", "audios": "sounds",
        }  # fmt: skip
        record = {old: column for column, old in columns.items()} | {"id": 3, "input": "unused"}
        assert renamed(record, entry(columns=columns)) == {
            "instruction": "prompt", "input": "query", "output": "response", "history": "history", "system": "system",
            "tools": "tools", "images": "images", "videos": "videos", "audios": "audios",
            "meta": {"id": 3, "input": "unused"},
        }  # fmt: skip

    def test_it_is_read_as_alpaca(self):
        columns = {"prompt": "question", "response": "reply", "images": "pictures"}
        record = {"question": "<image>What?", "reply": "A cat.", "pictures": ["a.jpg"], "answer": "other"}
        plain = renamed(record, entry(columns=columns))
        form = registry.detect([plain], (*alpaca.FORMATS, messages.FORMAT))
        assert form.name == "alpaca"
        (draft,) = form.convert(plain, PLAIN)
        assert checked(draft).messages == (
            Message("user", (Part("image", media=0), Part("text", "What?"))),
            Message("assistant", (Part("text", "A cat."),)),
        )
        assert draft.meta == {"meta": {"answer": "other"}}

    def test_needed_columns_that_are_missing_are_null(self):
        columns = {"prompt": "question", "query": "more", "response": "reply", "system": "rule"}
        assert renamed({"more": "a"}, entry(columns=columns)) == {"instruction": None, "input": "a", "output": None}

    def test_a_prompt_alone_is_plain_text(self):
        plain = renamed({"raw": "Once.", "label": 3}, entry(columns={"prompt": "raw"}))
        assert plain == {"text": "Once.", "meta": {"label": 3}}
        assert plain_text.FORMAT.matches(plain)

    def test_tags_say_nothing_here(self):
        assert entry(tags={"user_tag": "Q"}).is_plain


class TestShareGpt:
    def test_a_record_becomes_a_conversation(self):
        said = [("S", "s"), ("Q", "<image>What?"), ("F", "{}"), ("R", "7"), ("A", "Seven.")]
        record = {
            "talk": [{"who": who, "said": text} for who, text in said],
            "functions": '[{"name": "f"}]',
            "pictures": ["a.jpg"],
            "id": 3,
        }
        before = copy.deepcopy(record)
        plain = renamed(record, entry("sharegpt", COLUMNS, TAGS))
        assert record == before
        form = registry.detect([plain], (llava.FORMAT, messages.FORMAT))
        assert form.name == "llava"
        (draft,) = form.convert(plain)
        assert checked(draft) == Draft(
            messages=(
                Message("system", (Part("text", "s"),)),
                Message("user", (Part("image", media=0), Part("text", "What?"))),
                Message("assistant", (Part("text", "{}"),)),
                Message("tool", (Part("text", "7"),)),
                Message("assistant", (Part("text", "Seven."),)),
            ),
            media=(MediaReference("image", "a.jpg"),),
            tools='[{"name": "f"}]',
            meta={"meta": {"id": 3}},
        )

    def test_chat_messages(self):
        tags = OPENAI_TAGS | {"observation_tag": "tool", "system_tag": "rule"}
        record = {
            "talk": [turn("rule", "s"), turn("user", "a"), turn("assistant", "b"), turn("tool", "c")],
            "rule": "r",
        }
        assert renamed(record, entry("sharegpt", COLUMNS, tags)) == {
            "messages": [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("observation", "c")],
            "system": "r",
        }

    def test_speakers_that_changed_places(self):
        tags = {"user_tag": "gpt", "assistant_tag": "human"}
        record = {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}
        assert renamed(record, entry("sharegpt", None, tags)) == {
            "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
        }

    def test_speakers_without_a_tag_keep_their_names(self):
        plain = renamed({"talk": [{"who": "bot", "said": "a"}]}, entry("sharegpt", COLUMNS, TAGS))
        assert plain == {"conversations": [{"from": "bot", "value": "a"}]}

    def test_other_fields_of_a_turn_stay_out_of_the_way(self):
        talk = [{"who": "Q", "said": "a", "from": "Berlin", "score": 3}]
        assert renamed({"talk": talk}, entry("sharegpt", COLUMNS, TAGS)) == {
            "conversations": [{"from": "user", "value": "a", "other_from": "Berlin", "score": 3}]
        }

    def test_the_default_column_with_other_tags(self):
        record = {"conversations": [{"who": "Q", "said": "a"}]}
        assert renamed(record, entry("sharegpt", None, TAGS)) == {"conversations": [{"from": "user", "value": "a"}]}

    @pytest.mark.parametrize("talk", [None, "a", 3, {"who": []}, [], [3], [{}], [{"who": ["Q"], "said": None}]])
    def test_malformed_turns_are_left_for_the_format(self, talk):
        plain = renamed({"talk": talk}, entry("sharegpt", COLUMNS, TAGS))
        assert plain.keys() == {"conversations"}

    def test_a_missing_conversation_is_null(self):
        assert renamed({"id": 3}, entry("sharegpt", COLUMNS, TAGS)) == {
            "conversations": None,
            "meta": {"id": 3},
        }


class TestPreferences:
    @pytest.mark.parametrize(
        ("described", "record", "plain"),
        [
            (
                entry("sharegpt", {"messages": "talk", "chosen": "best", "rejected": "worst"}, TAGS),
                {
                    "talk": [{"who": "Q", "said": "a"}],
                    "best": {"who": "A", "said": "b"},
                    "worst": {"who": "A", "said": "c"},
                },
                {
                    "conversations": [{"from": "user", "value": "a"}],
                    "chosen": {"from": "assistant", "value": "b"},
                    "rejected": {"from": "assistant", "value": "c"},
                },
            ),
            (
                entry(columns={"prompt": "question", "chosen": "best", "rejected": "worst"}),
                {"question": "a", "best": "b", "worst": "c"},
                {"instruction": "a", "chosen": "b", "rejected": "c"},
            ),
            (
                entry(columns={"prompt": "question", "response": "reply", "kto_tag": "liked"}),
                {"question": "a", "reply": "b", "liked": False},
                {"instruction": "a", "output": "b", "kto_tag": False},
            ),
        ],
    )
    def test_they_are_told_from_instructions(self, described, record, plain):
        assert renamed(record, described) == plain
        formats = (llava.FORMAT, messages.FORMAT, *alpaca.FORMATS, *preferences.FORMATS)
        assert registry.detect([plain], formats).refused


class TestCompanion:
    def test_it_is_found_by_its_exact_name(self):
        assert COMPANION.find(["a.json", "dataset_info.json"], "a.json") == "dataset_info.json"
        assert COMPANION.find(["a.json", "Dataset_info.json", "dataset_info.jsonl"], "a.json") is None
        assert not COMPANION.required

    @pytest.mark.parametrize(
        ("document", "fits"),
        [
            ({"a": {"file_name": "a.json"}, "b": {"hf_hub_url": "b"}}, True),
            ({"features": {}, "splits": {}}, False),
            ({"a": {"file_name": "a.json"}, "b": 3}, False),
            ({}, False),
            ([], False),
        ],
    )
    def test_a_file_that_is_named_has_to_be_a_table(self, document, fits):
        assert COMPANION.fits(document) is fits

    def test_the_table_is_the_document(self):
        table = {"a": {"file_name": "a.json"}}
        assert COMPANION.build(iter([table])) == table
        assert COMPANION.build(iter([])) == {}
        assert COMPANION.build(iter([[table]])) == {}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.sampled_from(["Q", "A", "", "a.jpg"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["who", "said", "from"]), inner),
    max_leaves=8,
)
OPTIONAL = dict.fromkeys(["best", "worst", "pictures", "conversations", "chosen", "id"], VALUES)
RECORDS = (
    VALUES | st.dictionaries(st.text(max_size=3), VALUES) | st.fixed_dictionaries({"talk": VALUES}, optional=OPTIONAL)
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(record=RECORDS)
def test_nothing_is_raised_and_no_value_lost(record):
    columns = {"messages": "talk", "chosen": "best", "rejected": "worst", "images": "pictures"}
    plain = renamed(record, entry("sharegpt", columns, TAGS))
    if not isinstance(record, dict):
        assert plain is record
        return
    rest = {key: value for key, value in record.items() if key not in columns.values()}
    assert plain.get("meta", {}) == rest
    assert plain.get("images") == record.get("pictures")
    assert type(plain["conversations"]) is type(record.get("talk"))
