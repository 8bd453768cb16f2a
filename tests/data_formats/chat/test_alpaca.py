"""Instructions in their four forms against canonical records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import messages
from aria_finetune.data_formats.chat.alpaca import ALPACA, DOLLY, FORMATS, PROMPT_COMPLETION, SEED_TASKS
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked


def message(role, text, train=None):
    return Message(role, (Part("text", text),) if text else (), train)


def convert(form, record, **options):
    (draft,) = form.convert(record)
    return checked(draft, **options)


def reason(form, record):
    with pytest.raises(RecordError) as caught:
        convert(form, record)
    return caught.value.reason


class TestAlpaca:
    def test_a_record_of_every_part(self):
        record = {
            "system": "Be brief.",
            "instruction": "Sort.",
            "input": "b, a",
            "output": "a, b",
            "history": [["Ready?", "Yes."], ["Sure?", "Sure."]],
            "tools": '[{"name": "f"}]',
            "id": 7,
        }
        assert convert(ALPACA, record) == Draft(
            (
                message("system", "Be brief."),
                message("user", "Ready?"),
                message("assistant", "Yes."),
                message("user", "Sure?"),
                message("assistant", "Sure."),
                message("user", "Sort.\nb, a"),
                message("assistant", "a, b"),
            ),
            tools='[{"name": "f"}]',
            meta={"id": 7},
        )

    @pytest.mark.parametrize(
        ("asked", "text"),
        [
            ({"instruction": "Sort.", "input": ""}, "Sort."),
            ({"instruction": "Sort.", "input": None}, "Sort."),
            ({"instruction": "Sort."}, "Sort."),
            ({"instruction": "", "input": "b, a"}, "b, a"),
            ({"instruction": " Sort. ", "input": "\n"}, " Sort. \n\n"),
        ],
    )
    def test_an_empty_input_leaves_no_trace(self, asked, text):
        assert convert(ALPACA, asked | {"output": "a"}).messages[0] == message("user", text)

    def test_cells_of_a_table_stay_text(self):
        row = {"system": "00000", "instruction": "11111", "input": "22222", "output": "3.3", "history": ""}
        assert convert(ALPACA, row).messages == (
            message("system", "00000"),
            message("user", "11111\n22222"),
            message("assistant", "3.3"),
        )
        row = {"system": "", "instruction": "a", "input": "", "output": "c", "history": '[["x", "y"]]'}
        assert [turn.content[0].text for turn in convert(ALPACA, row).messages] == ["x", "y", "a", "c"]

    def test_the_first_of_several_answers(self):
        draft = convert(ALPACA, {"instruction": "Greet.", "input": "", "output": ["Hello", "Hi"]})
        assert draft.messages[1] == message("assistant", "Hello")
        assert draft.references == ("Hello", "Hi")
        assert draft.repairs == ("first_of_several_answers",)

    def test_images(self):
        image = Part("image", media=0)
        record = {"instruction": "Look: <image>", "input": "What?", "output": "A cat.", "images": ["a.jpg"]}
        draft = convert(ALPACA, record)
        assert draft.messages[0].content == (Part("text", "Look: "), image, Part("text", "\nWhat?"))
        draft = convert(ALPACA, {"instruction": "What?", "input": "", "output": "A cat.", "image": "a.jpg"})
        assert draft.messages[0].content == (image, Part("text", "What?"))
        assert (draft.media, draft.repairs) == ((MediaReference("image", "a.jpg"),), ("placeholder_added",))
        draft = convert(ALPACA, {"instruction": "", "input": "", "output": "A cat.", "image": "a.jpg"})
        assert draft.messages[0].content == (image,)

    def test_no_output_is_for_evaluation(self):
        record = {"instruction": "Sort.", "input": "b, a"}
        assert ALPACA.matches(record)
        assert convert(ALPACA, record, evaluation=True).messages == (message("user", "Sort.\nb, a"),)
        assert reason(ALPACA, record) == "empty_answer"

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"output": ""}, "empty_answer"),
            ({"output": None}, "empty_answer"),
            ({"output": []}, "empty_answer"),
            ({"output": ["", "Hi"]}, "empty_answer"),
            ({"output": 3}, "bad_schema"),
            ({"output": [3]}, "bad_schema"),
            ({"instruction": 3}, "bad_schema"),
            ({"input": ["b"]}, "bad_schema"),
            ({"instruction": "", "input": ""}, "bad_roles"),
            ({"history": "[('a', 'b')]"}, "bad_schema"),
            ({"history": "[['a', 'b']]"}, "bad_schema"),
            ({"history": [["a"]]}, "bad_schema"),
            ({"history": ["a"]}, "bad_schema"),
            ({"history": [["a", 1]]}, "bad_schema"),
            ({"history": [[None, "b"]]}, "bad_schema"),
            ({"history": [["a", None]]}, "empty_answer"),
            ({"history": [["", "b"]]}, "bad_roles"),
            ({"history": {"a": "b"}}, "bad_schema"),
            ({"system": 3}, "bad_schema"),
            ({"tools": "no JSON"}, "bad_schema"),
            ({"instruction": "<image>"}, "placeholder_mismatch"),
            ({"images": ["a", "b"], "input": "<image>"}, "placeholder_mismatch"),
            ({"audios": ["a.wav"]}, "unsupported_modality"),
            ({"output": "\udcff"}, "bad_text"),
        ],
    )
    def test_bad_records(self, changed, expected):
        assert reason(ALPACA, {"instruction": "Sort.", "input": "b, a", "output": "a, b"} | changed) == expected

    def test_binary_cells_stay_out_of_the_metadata(self):
        row = {"instruction": "Sort.", "output": "a", "icon": b"\0", "origin": {"thumb": b"\0", "page": 1}}
        draft = convert(ALPACA, row)
        assert (draft.meta, draft.repairs) == ({"origin": {"page": 1}}, ("bytes_dropped",))


class TestSeedTasks:
    def test_each_instance_is_a_conversation(self):
        task = {
            "id": "seed_task_1",
            "instruction": "Name the opposite.",
            "instances": [{"input": "cold", "output": "hot"}, {"input": "", "output": "none"}],
            "is_classification": False,
        }
        meta = {"id": "seed_task_1", "is_classification": False}
        drafts = [checked(draft) for draft in SEED_TASKS.convert(task)]
        assert drafts == [
            Draft((message("user", "Name the opposite.\ncold"), message("assistant", "hot")), meta=meta),
            Draft((message("user", "Name the opposite."), message("assistant", "none")), meta=meta),
        ]

    def test_a_bad_instance_does_not_lose_the_others(self):
        instances = ["cold", {"input": "a"}, {"input": 3, "output": "b"}, {"input": "a", "output": "b"}]
        candidates = list(SEED_TASKS.convert({"instruction": "Go on.", "instances": instances}))
        assert [candidate.reason for candidate in candidates[:3]] == ["bad_schema"] * 3
        assert candidates[3].messages[0] == message("user", "Go on.\na")

    @pytest.mark.parametrize("instances", [None, [], {}, "a"])
    def test_bad_records(self, instances):
        assert reason(SEED_TASKS, {"instruction": "Go on.", "instances": instances}) == "bad_schema"


class TestDolly:
    def test_the_context_goes_below_the_instruction(self):
        record = {"instruction": "When?", "context": "Built in 1898.", "response": "In 1898.", "category": "closed_qa"}
        assert convert(DOLLY, record) == Draft(
            (message("user", "When?\nBuilt in 1898."), message("assistant", "In 1898.")), meta={"category": "closed_qa"}
        )

    @pytest.mark.parametrize("context", ["", None])
    def test_an_empty_context_leaves_no_trace(self, context):
        record = {"instruction": "When?", "context": context, "response": "Now.", "category": "open_qa"}
        assert convert(DOLLY, record).messages[0] == message("user", "When?")

    def test_bad_records(self):
        assert reason(DOLLY, {"instruction": "When?", "context": "", "response": ""}) == "empty_answer"
        assert reason(DOLLY, {"instruction": "When?", "context": 1898, "response": "Now."}) == "bad_schema"


class TestPromptCompletion:
    def test_the_blank_before_a_completion_stays(self):
        assert convert(PROMPT_COMPLETION, {"prompt": "The sky is", "completion": " blue.\n", "id": 3}) == Draft(
            (message("user", "The sky is"), message("assistant", " blue.\n")), meta={"id": 3}
        )

    def test_messages(self):
        prompt = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        ]
        record = {"prompt": prompt, "completion": [{"role": "assistant", "content": "A cat."}], "images": ["a.jpg"]}
        assert convert(PROMPT_COMPLETION, record) == Draft(
            (
                message("system", "Be brief."),
                message("user", "Hi"),
                message("assistant", "Hello", train=False),
                Message("user", (Part("image", media=0), Part("text", "What?"))),
                message("assistant", "A cat."),
            ),
            (MediaReference("image", "a.jpg"),),
        )

    def test_a_turn_of_the_prompt_may_ask_to_be_trained_on(self):
        prompt = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "train": True},
            {"role": "user", "content": "c"},
        ]
        assert convert(PROMPT_COMPLETION, {"prompt": prompt, "completion": "d"}).messages[1].train is True

    @pytest.mark.parametrize("prompt", ["", None])
    def test_an_empty_prompt_means_text_to_pretrain_on(self, prompt):
        draft = convert(PROMPT_COMPLETION, {"prompt": prompt, "completion": "It was night."})
        assert draft == Draft((message("assistant", "It was night."),), repairs=("read_as_document",), document=True)

    def test_an_empty_prompt_with_an_image_asks_about_it(self):
        draft = convert(PROMPT_COMPLETION, {"prompt": "", "completion": "A cat.", "image": "a.jpg"})
        assert draft.messages == (Message("user", (Part("image", media=0),)), message("assistant", "A cat."))

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ({"prompt": 3, "completion": "a"}, "bad_schema"),
            ({"prompt": "a", "completion": 3}, "bad_schema"),
            ({"prompt": "a"}, "bad_schema"),
            ({"prompt": "a", "completion": ""}, "empty_answer"),
            ({"prompt": "a", "completion": None}, "empty_answer"),
            ({"prompt": "a", "completion": []}, "empty_answer"),
            ({"prompt": [], "completion": [{"role": "assistant", "content": "a"}]}, "bad_roles"),
            ({"prompt": ["a"], "completion": "b"}, "bad_schema"),
            ({"prompt": "<image>", "completion": "b", "images": ["a", "b"]}, "placeholder_mismatch"),
        ],
    )
    def test_bad_records(self, record, expected):
        assert reason(PROMPT_COMPLETION, record) == expected


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": None}, "alpaca"),
        ({"instruction": "a", "instances": []}, "seed-tasks"),
        ({"instruction": "a", "context": "", "response": "b", "category": "c"}, "dolly"),
        ({"instruction": "a", "response": "b"}, "dolly"),
        ({"prompt": "a", "completion": "b"}, "prompt-completion"),
        ({"prompt": [], "completion": [], "images": []}, "prompt-completion"),
        ({"instruction": "a"}, None),
        ({"instruction": "a", "output": "b", "rejected": "c"}, None),
        ({"prompt": "a", "completion": "b", "label": True}, None),
        ({"prompt": "a"}, None),
        (["a"], None),
    ],
)
def test_detection(record, name):
    assert [form.name for form in (*FORMATS, messages.FORMAT) if form.matches(record)] == ([name] if name else [])


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_example_is_of_its_format_and_sound(form):
    assert registry.detect([form.example], FORMATS) is form
    assert [checked(draft) for draft in form.convert(form.example)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(record=mutations(*(form.example for form in FORMATS)))
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_only_record_errors_are_raised(form, record):
    convert_or_reject(form, record)
