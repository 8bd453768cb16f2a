"""Video-ChatGPT records against drafts written by hand."""

import pytest
from video_drafts import asked, candidates, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.video.video_chatgpt import FORMAT

RECORD = {"q": "What?", "a": "A cat.", "video_id": "v_1"}


def test_training_data():
    assert convert(FORMAT, RECORD) == asked(clip("v_1"), "What?", "A cat.", meta={"video_id": "v_1"})


def test_the_benchmark():
    draft = convert(FORMAT, {"Q": "What?", "A": "A cat.", "video_name": "v_1"})
    assert draft == asked(clip("v_1"), "What?", "A cat.", meta={"video_name": "v_1"})


def test_two_questions_have_the_same_answer():
    drafts = candidates(FORMAT, {"Q1": "What?", "Q2": "Who?", "A": "A cat.", "video_name": "v_1"})
    assert drafts == [
        asked(clip("v_1"), question, "A cat.", meta={"video_name": "v_1"}) for question in ("What?", "Who?")
    ]


def test_one_bad_question_does_not_lose_the_other():
    found = candidates(FORMAT, {"Q1": 3, "Q2": "Who?", "A": "A cat.", "video_name": "v_1"})
    assert found[0].reason == "bad_schema"
    assert found[1].references == ("A cat.",)


def test_precomputed_features_stand_for_the_video():
    draft = convert(FORMAT, RECORD | {"video_id": "v_1.pkl"})
    assert draft.media == (clip("v_1"),)
    assert draft.meta == {"video_id": "v_1.pkl"}
    assert draft.repairs == ("pkl_ending_dropped",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"q": None}, "bad_schema"),
        ({"a": [None]}, "bad_schema"),
        ({"video_id": None}, "bad_schema"),
        ({"video_id": ".pkl"}, "bad_schema"),
        ({"a": ""}, "empty_answer"),
        ({"a": None}, "empty_answer"),
    ],
)
def test_bad_records(change, reason):
    with pytest.raises(RecordError, match=reason):
        convert(FORMAT, RECORD | change)


def test_no_question_at_all():
    with pytest.raises(RecordError, match="bad_schema"):
        candidates(FORMAT, {"a": "x", "video_id": "v"})


def test_what_is_recognised():
    assert FORMAT.matches(RECORD)
    assert FORMAT.matches({"Q1": "a", "Q2": "b", "A": "c", "video_name": "d"})
    assert not FORMAT.matches({"Q1": "a", "A": "c", "video_name": "d"})
    assert not FORMAT.matches({"q": "a", "a": "b"})
