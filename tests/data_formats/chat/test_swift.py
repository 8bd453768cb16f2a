"""ms-swift's own forms against canonical records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building.fields import json_text
from aria_finetune.data_formats.chat import alpaca, llava, messages
from aria_finetune.data_formats.chat.swift import FORMATS, PAIRS, SWIFT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked


def message(role, text):
    return Message(role, (Part("text", text),) if text else ())


def convert(form, record, **options):
    (draft,) = form.convert(record)
    return checked(draft, **options)


def reason(form, record):
    with pytest.raises(RecordError) as caught:
        convert(form, record)
    return caught.value.reason


IMAGE = Part("image", media=0)
ASKED = {"query": "What?", "response": "A cat."}


class TestSwift:
    def test_history_comes_first(self):
        record = ASKED | {"system": "Be brief.", "history": [["a", "b"], ["c", "d"]], "tools": [{"name": "f"}], "id": 1}
        assert convert(SWIFT, record) == Draft(
            (
                message("system", "Be brief."),
                message("user", "a"),
                message("assistant", "b"),
                message("user", "c"),
                message("assistant", "d"),
                message("user", "What?"),
                message("assistant", "A cat."),
            ),
            tools=json_text([{"name": "f"}]),
            meta={"id": 1},
        )

    def test_a_row_of_a_table(self):
        row = {
            "system": "",
            "query": "11111",
            "response": "00000",
            "history": "[]",
            "images": "",
            "audio": "",
            "tools": "",
        }
        assert convert(SWIFT, row).messages == (message("user", "11111"), message("assistant", "00000"))

    def test_media_without_a_place_go_before_the_first_question(self):
        record = ASKED | {"history": [["a", "b"]], "images": ["a.jpg"], "videos": ["v.mp4"]}
        draft = convert(SWIFT, record)
        assert draft.messages[0].content == (IMAGE, Part("video", media=1), Part("text", "a"))
        assert draft.media == (MediaReference("image", "a.jpg"), MediaReference("video", "v.mp4"))
        assert draft.repairs == ("placeholder_added",)

    def test_placeholders_in_history_and_query(self):
        record = {
            "query": "And <image>?",
            "response": "No.",
            "history": [["<image>A cat?", "Yes."]],
            "images": ["a", "b"],
        }
        draft = convert(SWIFT, record)
        assert draft.messages[0].content == (IMAGE, Part("text", "A cat?"))
        assert draft.messages[2].content == (Part("text", "And "), Part("image", media=1), Part("text", "?"))

    def test_images_that_the_question_names(self):
        record = {
            "query": "<img>https://host/a.png</img>Like\n<img>b.jpg</img>?",
            "response": "Yes, <img>x</img>.",
            "history": [["<video>v.mp4</video> What?", "A walk."]],
        }
        draft = convert(SWIFT, record)
        assert draft.messages == (
            Message("user", (Part("video", media=0), Part("text", " What?"))),
            message("assistant", "A walk."),
            Message(
                "user", (Part("image", media=1), Part("text", "Like\n"), Part("image", media=2), Part("text", "?"))
            ),
            message("assistant", "Yes, <img>x</img>."),
        )
        assert [medium.reference for medium in draft.media] == ["v.mp4", "https://host/a.png", "b.jpg"]
        assert draft.repairs == ()

    @pytest.mark.parametrize(
        ("response", "references", "repairs"),
        [(["A cat.", "Cat."], ("A cat.", "Cat."), ("first_of_several_answers",)), (["A cat."], ("A cat.",), ())],
    )
    def test_a_list_of_responses(self, response, references, repairs):
        draft = convert(SWIFT, {"query": "What?", "response": response})
        assert draft.messages[1] == message("assistant", "A cat.")
        assert (draft.references, draft.repairs) == (references, repairs)

    @pytest.mark.parametrize("row", [{}, {"query": None}, {"query": None, "history": [], "system": ""}])
    def test_a_response_alone_is_text_to_pretrain_on(self, row):
        draft = convert(SWIFT, row | {"response": "It was night."})
        assert draft == Draft((message("assistant", "It was night."),), repairs=("read_as_document",), document=True)

    def test_nothing_beside_a_response_alone_is_lost(self):
        record = {"response": ["<bbox>", "b"], "tools": [{"name": "f"}], "objects": {"bbox": [[1, 2]]}, "x": b"\0"}
        draft = convert(SWIFT, record | {"query": None})
        assert draft.references == ("<bbox>", "b")
        assert draft.tools == json_text([{"name": "f"}])
        assert draft.meta == {"objects": {"bbox": [[1, 2]], "coordinates": "xy pixels"}}
        notices = {"first_of_several_answers", "box_placeholder_kept_as_text", "bytes_dropped"}
        assert set(draft.repairs) == {"read_as_document", *notices}

    def test_a_response_alone_with_images(self):
        draft = convert(SWIFT, {"response": "<image>A cat.", "images": ["a.jpg"], "id": 2})
        assert draft.messages == (Message("assistant", (IMAGE, Part("text", "A cat."))),)
        assert draft.meta == {"id": 2}
        assert reason(SWIFT, {"response": "A cat.", "images": ["a.jpg"]}) == "placeholder_mismatch"

    @pytest.mark.parametrize(
        ("box_type", "boxes", "system"),
        [
            ({}, [[1, 2, 3, 4]], "xyxy pixels"),
            ({"bbox_type": "real"}, [[1, 2, 3, 4], [5, 6]], "xy or xyxy pixels"),
            ({"bbox_type": "norm1"}, [[0.1, 0.2]], "xy 0-1"),
            ({"bbox_type": "other"}, [[1, 2]], "xy unknown"),
        ],
    )
    def test_boxes_are_kept_with_their_coordinate_system(self, box_type, boxes, system):
        objects = {"ref": ["a cat"], "bbox": boxes} | box_type
        record = {"query": "Where is the <ref-object>?", "response": "<bbox>", "images": ["a"], "objects": objects}
        draft = convert(SWIFT, record)
        assert draft.meta == {"objects": objects | {"coordinates": system}}
        assert draft.messages[1] == message("assistant", "<bbox>")
        assert set(draft.repairs) == {"placeholder_added", "box_placeholder_kept_as_text"}

    def test_boxes_that_the_text_does_not_mention_need_no_notice(self):
        draft = convert(SWIFT, ASKED | {"objects": {"bbox": [[1, 2, 3, 4]]}})
        assert draft.repairs == ()

    def test_a_question_alone_is_for_evaluation(self):
        assert convert(SWIFT, {"query": "What?"}, evaluation=True).messages == (message("user", "What?"),)
        assert reason(SWIFT, {"query": "What?"}) == "empty_answer"

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"query": ""}, "bad_roles"),
            ({"query": None, "history": [["a", "b"]]}, "bad_roles"),
            ({"query": None, "system": "Be brief."}, "bad_roles"),
            ({"query": 3}, "bad_schema"),
            ({"response": 3}, "bad_schema"),
            ({"response": ""}, "empty_answer"),
            ({"response": None}, "empty_answer"),
            ({"response": []}, "empty_answer"),
            ({"history": "[['a', 'b']]"}, "bad_schema"),
            ({"query": "<image>?"}, "placeholder_mismatch"),
            ({"query": "<image><image>?", "images": ["a"]}, "placeholder_mismatch"),
            ({"query": "<image>?", "images": ["a", "b"]}, "placeholder_mismatch"),
            ({"query": "<img>a</img>?", "images": ["b"]}, "placeholder_mismatch"),
            ({"query": "<audio>a.wav</audio>?"}, "unsupported_modality"),
            ({"audios": ["a.wav"]}, "unsupported_modality"),
        ],
    )
    def test_bad_records(self, changed, expected):
        assert reason(SWIFT, ASKED | changed) == expected

    def test_neither_question_nor_answer(self):
        assert reason(SWIFT, {"history": []}) == "bad_roles"
        assert reason(SWIFT, "text") == "bad_schema"


class TestPairs:
    def test_pairs_become_turns(self):
        record = {
            "system": "Be brief.",
            "conversation": [
                {"human": "<image>What?", "assistant": "A cat.", "score": 1},
                {"user": "Sure?", "gpt": "Yes."},
                {"tool": "7", "bot": "Seven."},
            ],
            "images": ["a.jpg"],
            "id": 1,
        }
        assert convert(PAIRS, record) == Draft(
            (
                message("system", "Be brief."),
                Message("user", (IMAGE, Part("text", "What?"))),
                message("assistant", "A cat."),
                message("user", "Sure?"),
                message("assistant", "Yes."),
                message("tool", "7"),
                message("assistant", "Seven."),
            ),
            (MediaReference("image", "a.jpg"),),
            meta={"id": 1, "conversation": {"0": {"score": 1}}},
        )

    def test_the_last_answer_may_be_missing_for_evaluation(self):
        record = {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c"}]}
        assert len(convert(PAIRS, record, evaluation=True).messages) == 3

    @pytest.mark.parametrize(
        ("pair", "expected"),
        [
            ({"assistant": "b"}, "bad_schema"),
            ({"human": "a", "user": "a", "assistant": "b"}, "bad_schema"),
            ({"human": "a", "assistant": "b", "gpt": "b"}, "bad_schema"),
            ({"human": 1, "assistant": "b"}, "bad_schema"),
            ({"human": "a", "assistant": 1}, "bad_schema"),
            ({"human": "a", "assistant": None}, "empty_answer"),
            ({"human": "", "assistant": "b"}, "bad_roles"),
            ({"human": "<image>", "assistant": "b"}, "placeholder_mismatch"),
            ("a", "bad_schema"),
        ],
    )
    def test_bad_records(self, pair, expected):
        assert reason(PAIRS, {"conversation": [pair]}) == expected

    def test_no_pair(self):
        assert reason(PAIRS, {"conversation": []}) == "bad_roles"
        assert reason(PAIRS, {"conversation": None}) == "bad_schema"
        assert reason(PAIRS, {}) == "bad_schema"


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"query": "a", "response": "b", "anything": 1}, "swift"),
        ({"response": "b"}, "swift"),
        ({"query": "a", "images": []}, "swift"),
        ({"query": "a", "response": None, "rejected_response": None}, "swift"),
        ({"query": "a", "label": "b"}, None),
        ({"response": "a", "question": "b"}, None),
        ({"query": "a", "response": "b", "rejected_response": "c"}, None),
        ({"query": "a", "response": "b", "label": False}, None),
        ({"conversation": [{"human": "a", "assistant": "b"}]}, "swift-pairs"),
        ({"conversation": [{"human": "a"}, None]}, "swift-pairs"),
        ({"conversation": [{"human": "a", "assistant": "b"}], "rejected_response": "c"}, None),
        ([{"human": "a", "assistant": "b"}], None),
        ({"conversation": [{"role": "user", "content": "a"}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "llava"),
        ({"messages": [{"role": "user", "content": "a"}], "objects": {}}, "messages"),
    ],
)
def test_detection(record, name):
    forms = (*FORMATS, *alpaca.FORMATS, messages.FORMAT, llava.FORMAT)
    assert [form.name for form in forms if form.matches(record)] == ([name] if name else [])


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_example_is_of_its_format_and_sound(form):
    assert registry.detect([form.example], FORMATS) is form
    assert [checked(draft).repairs for draft in form.convert(form.example)] == [()]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(record=mutations(*(form.example for form in FORMATS), words=("<img>a</img>", "<bbox>", "objects", "bbox")))
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_only_record_errors_are_raised(form, record):
    convert_or_reject(form, record)
