"""NExT-QA rows against drafts written by hand."""

import pytest
from video_drafts import asked, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.video import clips
from aria_finetune.data_formats.video.nextqa import FORMAT

ROW = {
    "video": "0042",
    "frame_count": "369",
    "width": "640",
    "height": "480",
    "question": "how does he play",
    "answer": "0",
    "qid": "6",
    "type": "CH",
    "a0": "rolls",
    "a1": "taps",
    "a2": "strums",
    "a3": "hits",
    "a4": "pats",
}
QUESTION = "how does he play\nA. rolls\nB. taps\nC. strums\nD. hits\nE. pats"
META = {"video": "0042", "frame_count": "369", "width": "640", "height": "480", "qid": "6", "type": "CH"}
OPEN = {"video": "7", "frame_count": "1", "width": "2", "height": "2", "question": "who", "answer": "a man"} | {
    "qid": "0",
    "type": "DO",
    "additional_ref_answer": "",
}


def test_a_row_with_choices():
    accepted = ("A", "rolls", "A. rolls")
    assert convert(FORMAT, ROW) == asked(clip("0042"), QUESTION, "A. rolls", references=accepted, meta=META)


def test_the_map_names_the_folder_and_the_plain_name_is_tried_too():
    (companion,) = FORMAT.companions
    tables = {"folders": companion.build(iter([{"0042": "1106/0042", "x": 3}]))}
    draft = convert(FORMAT, ROW, tables=tables)
    assert draft.media == (clips.clip("1106/0042", "0042"),)
    assert draft.media[0].reference == "1106/0042.mp4"
    assert "0042.mp4" in draft.media[0].alternatives
    assert convert(FORMAT, ROW | {"video": "43"}, tables=tables).media == (clip("43"),)


def test_where_the_map_is_found():
    (companion,) = FORMAT.companions
    assert companion.find(["val.csv", "map_vid_vidorID.json"], "val.csv") == "map_vid_vidorID.json"
    assert companion.find(["val.csv", "map.json"], "val.csv") is None
    assert companion.fits({"1": "a/1"})
    assert not companion.fits({"1": 1})
    assert not companion.fits([])


def test_an_open_question():
    meta = {key: OPEN[key] for key in ("video", "frame_count", "width", "height", "qid", "type")}
    meta["additional_ref_answer"] = ""
    assert convert(FORMAT, OPEN) == asked(clip("7"), "who", "a man", meta=meta)
    assert convert(FORMAT, OPEN | {"additional_ref_answer": "a boy"}).references == ("a man", "a boy")


def test_ids_and_answers_that_became_numbers():
    draft = convert(FORMAT, ROW | {"video": 42, "answer": 4})
    assert draft.media == (clip("42"),)
    assert draft.references == ("E", "pats", "E. pats")


@pytest.mark.parametrize("wordless", [{"answer": ""}, {"answer": None}])
def test_without_an_answer_only_for_evaluation(wordless):
    with pytest.raises(RecordError, match="empty_answer"):
        convert(FORMAT, ROW | wordless)
    assert len(convert(FORMAT, ROW | wordless, evaluation=True).messages) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "5"},
        {"answer": "A"},
        {"question": None},
        {"video": ""},
        {"video": None},
        {"a3": None},
        {"a3": 3},
    ],
)
def test_bad_rows(change):
    with pytest.raises(RecordError, match="bad_schema"):
        convert(FORMAT, ROW | change)


def test_what_is_recognised():
    assert FORMAT.matches(ROW)
    assert FORMAT.matches(OPEN)
    assert FORMAT.matches({key: ROW[key] for key in ("video", "question", "qid", "a0", "a1", "a2", "a3", "a4")})
    assert not FORMAT.matches({key: value for key, value in ROW.items() if key != "qid"})
    assert not FORMAT.matches({"video": "1", "question": "q", "answer": "a", "qid": 1, "type": "x"})
    assert not FORMAT.matches([ROW])
