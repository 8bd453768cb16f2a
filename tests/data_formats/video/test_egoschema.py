"""EgoSchema questions against drafts written by hand."""

import pytest
from video_drafts import asked, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.video.egoschema import FORMAT

OPTIONS = {f"option {number}": text for number, text in enumerate(["cook", "clean", "read", "paint", "dig"])}
RECORD = {"q_uid": "0a1b", "google_drive_id": "x", "question": "What?", **OPTIONS}
TABLE_ROW = {"question_idx": "3", "video_idx": "0a1b", "question": "What?", "option": list(OPTIONS.values())}
QUESTION = "What?\nA. cook\nB. clean\nC. read\nD. paint\nE. dig"
ACCEPTED = ("C", "read", "C. read")
(COMPANION,) = FORMAT.companions
TABLES = {"answers": COMPANION.build(iter([{"0a1b": 2, "other": 9}, 3]))}


def test_the_answer_of_the_file_beside():
    meta = {"q_uid": "0a1b", "google_drive_id": "x"}
    draft = convert(FORMAT, RECORD, tables=TABLES)
    assert draft == asked(clip("0a1b"), QUESTION, "C. read", references=ACCEPTED, meta=meta)


def test_a_row_of_the_table_with_its_own_answer():
    meta = {"question_idx": "3", "video_idx": "0a1b"}
    draft = convert(FORMAT, TABLE_ROW | {"answer": "2"})
    assert draft == asked(clip("0a1b"), QUESTION, "C. read", references=ACCEPTED, meta=meta)


@pytest.mark.parametrize("record", [RECORD, TABLE_ROW | {"answer": None}])
def test_without_an_answer_only_for_evaluation(record):
    with pytest.raises(RecordError, match="empty_answer"):
        convert(FORMAT, record)
    assert len(convert(FORMAT, record, evaluation=True).messages) == 1


@pytest.mark.parametrize(
    "record",
    [
        RECORD | {"answer": 5},
        RECORD | {"question": None},
        RECORD | {"q_uid": ""},
        RECORD | {"option 1": None},
        TABLE_ROW | {"option": "cook"},
        TABLE_ROW | {"option": []},
    ],
)
def test_bad_records(record):
    with pytest.raises(RecordError, match="bad_schema"):
        convert(FORMAT, record)


def test_where_the_answers_are_found():
    assert COMPANION.find(["questions.json", "subset_answers.json"], "questions.json") == "subset_answers.json"
    assert COMPANION.find(["answers.json"], "questions.json") is None
    assert COMPANION.fits({"a": 1})
    assert not COMPANION.fits({"a": "x"})


def test_what_is_recognised():
    assert FORMAT.matches(RECORD)
    assert FORMAT.matches(TABLE_ROW)
    assert not FORMAT.matches({"a": 1, "b": 2})
    assert not FORMAT.matches({"question": "q", "option 0": "a"})
