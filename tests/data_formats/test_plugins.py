"""Formats that other people write: what they may do wrong, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from aria_finetune.data_formats import plugins
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.format import Format
from aria_finetune.data_formats.record import Draft, Message, Part

MINE = """
from aria_finetune.data_formats import Draft, Format, RecordError
from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.record import Message, Part

def convert(record, context=None):
    yield Draft((Message("user", (Part("text", record["question"]),)), Message("assistant", (Part("text", "Yes."),))))
    if "second" in record:
        yield {"wait": Draft(()), "none": None}[record["second"]]
    if "stop" in record:
        raise FormatError("no further")
    if "bad" in record:
        raise RecordError("bad_roles", "as it says")

FORMAT = Format(name="mine", title="Mine", schema="", example={}, traps=(), keys=frozenset({"question"}),
                matches=lambda record: "question" in record, convert=convert)
"""


@pytest.fixture
def form(tmp_path: Path) -> Format:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    (found,) = plugins.of_file(file)
    return found


def test_a_sound_record(form: Format) -> None:
    assert list(form.convert({"question": "Is it?"})) == [
        Draft((Message("user", (Part("text", "Is it?"),)), Message("assistant", (Part("text", "Yes."),))))
    ]


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ({}, "the converter mine failed with KeyError: 'question' (mine.py:7)"),
        (7, "the converter mine failed with TypeError: 'int' object is not subscriptable (mine.py:7)"),
        ({"question": "Is it?", "second": "later"}, "the converter mine failed with KeyError: 'later' (mine.py:9)"),
    ],
)
def test_a_slip_costs_the_record(form: Format, record: object, detail: str) -> None:
    with pytest.raises(RecordError) as caught:
        list(form.convert(record))
    assert (caught.value.reason, caught.value.detail) == ("bad_schema", detail)


def test_what_is_no_draft_costs_a_candidate(form: Format) -> None:
    first, second = form.convert({"question": "Is it?", "second": "none"})
    assert isinstance(first, Draft)
    assert isinstance(second, RecordError)
    assert second.detail == "the converter mine gave a NoneType, not a Draft"


def test_its_own_errors_are_kept(form: Format) -> None:
    with pytest.raises(RecordError, match="as it says") as caught:
        list(form.convert({"question": "Is it?", "bad": 1}))
    assert caught.value.reason == "bad_roles"
    with pytest.raises(FormatError, match="no further"):
        list(form.convert({"question": "Is it?", "stop": 1}))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1 / 0", "it can't be run: ZeroDivisionError"),
        ("def", "it can't be run: SyntaxError"),
        ("", "it has neither FORMAT nor FORMATS"),
        ("FORMAT = 7", "it is no Format and no tuple of them"),
        ("FORMATS = [7]", "it is no Format and no tuple of them"),
    ],
)
def test_a_file_without_formats(tmp_path: Path, code: str, told: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(FormatError, match=told) as caught:
        plugins.of_file(tmp_path / "mine.py")
    assert caught.value.where == str(tmp_path / "mine.py")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="it is no Python file"):
        plugins.of_file(tmp_path / "none.py")
