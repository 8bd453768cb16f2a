"""TVQA records against drafts written by hand."""

import pytest
from video_drafts import asked, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.video.tvqa import FORMAT

RECORD = {
    "a0": "a cup",
    "a1": "a hat",
    "a2": "a dog",
    "a3": "a pen",
    "a4": "a box",
    "answer_idx": 1,
    "q": "What is it?",
    "qid": 7,
    "show_name": "A show",
    "ts": "48.62-60.02",
    "vid_name": "s01e01_clip_00",
}
QUESTION = "What is it?\nA. a cup\nB. a hat\nC. a dog\nD. a pen\nE. a box"


def test_a_record():
    meta = {key: RECORD[key] for key in ("qid", "show_name", "ts", "vid_name")}
    accepted = ("B", "a hat", "B. a hat")
    medium = clip("s01e01_clip_00", 48.62, 60.02)
    assert convert(FORMAT, RECORD) == asked(medium, QUESTION, "B. a hat", references=accepted, meta=meta)


@pytest.mark.parametrize(
    ("ts", "span"),
    [
        ("nan-nan", (None, None)),
        ("NaN-NaN", (None, None)),
        ("", (None, None)),
        (None, (None, None)),
        ("0-5", (0.0, 5.0)),
        (" 1.5 - 2 ", (1.5, 2.0)),
        ([1, 2.5], (1.0, 2.5)),
    ],
)
def test_the_part_that_is_shown(ts, span):
    (medium,) = convert(FORMAT, RECORD | {"ts": ts}).media
    assert (medium.start, medium.end) == span


def test_the_test_split_is_for_evaluation():
    record = {key: value for key, value in RECORD.items() if key not in {"answer_idx", "ts"}}
    with pytest.raises(RecordError, match="empty_answer"):
        convert(FORMAT, record)
    assert convert(FORMAT, record, evaluation=True).media == (clip("s01e01_clip_00"),)


@pytest.mark.parametrize(
    "change",
    [
        {"ts": "60-48"},
        {"ts": "a-b"},
        {"ts": "1.2.3-4"},
        {"ts": 5},
        {"answer_idx": 5},
        {"answer_idx": "a hat"},
        {"q": None},
        {"vid_name": ""},
        {"a4": None},
    ],
)
def test_bad_records(change):
    with pytest.raises(RecordError, match="bad_schema"):
        convert(FORMAT, RECORD | change)


def test_what_is_recognised():
    assert FORMAT.matches(RECORD)
    assert not FORMAT.matches({"q": "q", "a": "a", "video_id": "v"})
