"""HumanEval's functions against conversations written by hand; the answer is a program that passes its tests."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat.humaneval import FORMAT
from aria_finetune.data_formats.record import Draft, Message, Part

RECORD = FORMAT.example


def test_a_function():
    answer = '```python\ndef double(x):\n    """Twice x."""\n    return 2 * x\n```'
    asked = (
        "Complete this Python function. Answer with the whole function in one code block.\n\n"
        '```python\ndef double(x):\n    """Twice x."""\n```'
    )
    kept = {key: RECORD[key] for key in ("task_id", "prompt", "entry_point", "test")}
    assert drafts(FORMAT, RECORD) == [
        Draft(
            messages=(Message("user", (Part("text", text=asked),)), Message("assistant", (Part("text", text=answer),))),
            references=(answer,),
            meta=kept,
        )
    ]


def test_blank_lines_and_indents_inside_stay():
    begun = "\n\nimport math\n\n\ndef f(x):\n"
    (draft,) = drafts(
        FORMAT, RECORD | {"prompt": begun, "canonical_solution": "    if x:\n        return 1\n\n    return 2\n\n"}
    )
    assert draft.references == (
        "```python\nimport math\n\n\ndef f(x):\n    if x:\n        return 1\n\n    return 2\n```",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"canonical_solution": None}, "empty_answer"),
        ({"canonical_solution": ""}, "empty_answer"),
        ({"prompt": None}, "bad_schema"),
        ({"test": ""}, "bad_schema"),
        ({"entry_point": 3}, "bad_schema"),
        ({"canonical_solution": 3}, "bad_schema"),
    ],
)
def test_bad_records(changes, reason):
    assert reasons(FORMAT, RECORD | changes) == [reason]


def test_detection():
    assert registry.detect([RECORD]) is FORMAT
    assert not FORMAT.matches({"prompt": "a", "completion": "b"})
    assert not FORMAT.matches("text")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
