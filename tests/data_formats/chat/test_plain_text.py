"""Plain text to pretrain on against canonical records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import alpaca, messages
from aria_finetune.data_formats.chat.plain_text import FORMAT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, Message, Part
from aria_finetune.data_formats.rules import checked


def convert(record, **options):
    (draft,) = FORMAT.convert(record)
    return checked(draft, **options)


def test_the_text_is_one_turn_of_the_assistant():
    record = {"text": " It was night.\n<image> ", "url": "https://h", "timestamp": "2019"}
    assert convert(record) == Draft(
        (Message("assistant", (Part("text", " It was night.\n<image> "),)),),
        meta={"url": "https://h", "timestamp": "2019"},
        document=True,
    )


def test_other_columns_are_kept_where_the_format_is_named():
    draft = convert({"text": "a", "label": 1, "icon": b"\0"})
    assert (draft.meta, draft.repairs) == ({"label": 1}, ("bytes_dropped",))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": ""}, "empty_answer"),
        ({"text": " \n"}, "empty_answer"),
        ({"text": None}, "empty_answer"),
        ({"text": 3}, "bad_schema"),
        ({"text": ["a"]}, "bad_schema"),
        ({}, "bad_schema"),
        ("a", "bad_schema"),
        ({"text": "\ud800"}, "bad_text"),
    ],
)
def test_bad_records(record, reason):
    with pytest.raises(RecordError) as caught:
        convert(record)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("record", "fits"),
    [
        ({"text": "a"}, True),
        ({"text": None}, True),
        ({"text": "a", "id": 1, "url": "b", "meta": {}, "language_score": 0.9}, True),
        ({"text": "a", "label": 1}, False),
        ({"text": "a", "image": "b.jpg"}, False),
        ({"question_id": 1, "image": "a.jpg", "text": "a", "label": "yes"}, False),
        ({"text": ["a"]}, False),
        ({"id": 1}, False),
        ("a", False),
    ],
)
def test_detection(record, fits):
    assert FORMAT.matches(record) is fits


def test_the_example_is_of_its_format_and_sound():
    assert registry.detect([FORMAT.example], (FORMAT, messages.FORMAT, *alpaca.FORMATS)) is FORMAT
    assert convert(FORMAT.example).document


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=mutations(FORMAT.example))
def test_only_record_errors_are_raised(record):
    convert_or_reject(FORMAT, record)
