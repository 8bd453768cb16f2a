"""Donut's documents against conversations written by hand."""

import json

import pytest

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked
from aria_finetune.data_formats.tables.donut import FORMAT

PROMPT = "Write out the fields of the document as JSON."


def text(content):
    return Part("text", text=content)


def converted(truth, **rest):
    return [checked(draft) for draft in FORMAT.convert({"file_name": "a.png", "ground_truth": truth, **rest})]


def said(draft):
    user, assistant = draft.messages
    return user.content[-1].text, assistant.content[0].text


@pytest.mark.parametrize("truth", [{"gt_parse": {"total": "2,50 €"}}, '{"gt_parse": {"total": "2,50 €"}}'])
def test_fields_as_json(truth):
    assert converted(truth, split="train") == [
        Draft(
            messages=(
                Message("user", (Part("image", media=0), text(PROMPT))),
                Message("assistant", (text('{"gt_parse": {"total": "2,50 €"}}'),)),
            ),
            media=(MediaReference("image", "a.png"),),
            references=('{"gt_parse": {"total": "2,50 €"}}',),
            meta={"split": "train"},
        )
    ]


def test_escaped_characters_are_written_out():
    (draft,) = converted('{"gt_parse":{"total": "2,50 \\u20ac"}}')
    assert said(draft)[1] == '{"gt_parse": {"total": "2,50 €"}}'
    assert draft.repairs == ("json_rewritten",)


def test_what_lies_beside_the_parse_is_metadata():
    (draft,) = converted({"valid_line": [[1]], "gt_parse": {"a": "b"}, "meta": {"version": "2"}})
    assert said(draft)[1] == '{"gt_parse": {"a": "b"}}'
    assert draft.meta == {"ground_truth": {"valid_line": [[1]], "meta": {"version": "2"}}}


def test_without_a_parse_the_whole_is_written_out():
    (draft,) = converted({"total": "2"})
    assert said(draft)[1] == '{"total": "2"}'
    assert draft.meta == {}


def test_the_first_of_several_parses_is_the_answer():
    (draft,) = converted({"gt_parses": [{"a": "1"}, {"a": "2"}]})
    assert said(draft)[1] == '{"gt_parse": {"a": "1"}}'
    assert draft.references == ('{"gt_parse": {"a": "1"}}', '{"gt_parse": {"a": "2"}}')


def test_questions_are_asked():
    parses = [
        {"question": "Who?", "answer": "Ann"},
        {"question": "Who?", "answer": "Ann Lee"},
        {"question": "When?", "answer": "1870"},
    ]
    who, when = converted(json.dumps({"gt_parses": parses}))
    assert (said(who), who.references) == (("Who?", "Ann"), ("Ann", "Ann Lee"))
    assert (said(when), when.references) == (("When?", "1870"), ("1870",))


@pytest.mark.parametrize(
    ("image", "medium"),
    [
        ({"bytes": b"\x89PNG", "path": "x.png"}, MediaReference("image", "x.png", content=b"\x89PNG")),
        ({"bytes": b"\x89PNG", "path": None}, MediaReference("image", "image", content=b"\x89PNG")),
        ({"bytes": None, "path": "x.png"}, MediaReference("image", "x.png")),
        (b"\x89PNG", MediaReference("image", "image", content=b"\x89PNG")),
        ("x.png", MediaReference("image", "x.png")),
    ],
)
def test_rows_with_an_image(image, medium):
    (draft,) = FORMAT.convert({"image": image, "ground_truth": '{"gt_parse": {}}'})
    assert draft.media == (medium,)
    assert draft.meta == {}


def test_a_name_beside_the_image_is_metadata():
    (draft,) = converted({"gt_parse": {}}, image=b"x")
    assert draft.media == (MediaReference("image", "image", content=b"x"),)
    assert draft.meta == {"file_name": "a.png"}


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        ("not JSON", "bad_schema"),
        ('{"gt_parse": {"a": 1, "a": 2}}', "bad_schema"),
        ('{"gt_parse": NaN}', "bad_schema"),
        ("[1]", "bad_schema"),
        ([1], "bad_schema"),
        (None, "bad_schema"),
        ({"gt_parse": ["a"]}, "bad_schema"),
        ({"gt_parse": {"a": b"x"}}, "bad_schema"),
        ({"gt_parses": {"a": 1}}, "bad_schema"),
        ({"gt_parses": []}, "bad_schema"),
        ({"gt_parses": ["a"]}, "bad_schema"),
        ({"gt_parse": {}, "gt_parses": [{}]}, "bad_schema"),
        ({"gt_parse": {"question": "Who?", "answer": ""}}, "empty_answer"),
        ({"gt_parse": {"a": "\ud800"}}, "bad_text"),
    ],
)
def test_bad_truths(truth, reason):
    with pytest.raises(RecordError) as caught:
        converted(truth)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"ground_truth": "{}"}, "bad_schema"),
        ({"file_name": "a.png"}, "bad_schema"),
        ({"image": None, "ground_truth": "{}"}, "bad_schema"),
        ({"image": {"bytes": "iVBO", "path": None}, "ground_truth": "{}"}, "bad_schema"),
        ({"file_name": "a.wav", "ground_truth": "{}"}, "unsupported_modality"),
        ("{}", "bad_schema"),
    ],
)
def test_bad_records(record, reason):
    with pytest.raises(RecordError) as caught:
        list(FORMAT.convert(record))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("record", "matches"),
    [
        ({"image": None, "ground_truth": None}, True),
        ({"page_file_name": "a.png", "ground_truth": {}}, True),
        ({"ground_truth": {}}, False),
        ({"image": "a.png", "question": "What?", "ground_truth": "a"}, False),
        ({"image": "a.png", "messages": [], "ground_truth": "a"}, False),
        ({"image": "a.png"}, False),
        ("ground_truth", False),
    ],
)
def test_detection(record, matches):
    assert FORMAT.matches(record) is matches
