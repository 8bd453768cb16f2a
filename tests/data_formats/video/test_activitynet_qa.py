"""ActivityNet-QA: questions, and answers from the same record or the file beside it."""

import pytest
from video_drafts import asked, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.video import clips
from aria_finetune.data_formats.video.activitynet_qa import FORMAT

RECORD = {"video_name": "1QIU", "question": "is it swimming", "question_id": "v_1QIU_3"}
ANSWER = {"question_id": "v_1QIU_3", "answer": "no", "type": 3}
CLIP = clips.clip("v_1QIU", "1QIU")
(COMPANION,) = FORMAT.companions


def tables(*answers):
    return {"answers": COMPANION.build(iter(answers))}


def test_the_answer_of_the_file_beside():
    meta = {"video_name": "1QIU", "question_id": "v_1QIU_3", "type": 3}
    draft = convert(FORMAT, RECORD, tables=tables(ANSWER, 3, {"question_id": None}))
    assert draft == asked(CLIP, "is it swimming", "no", meta=meta)


def test_the_answer_of_the_record_goes_first():
    draft = convert(FORMAT, RECORD | {"answer": "yes", "type": "3"}, tables=tables(ANSWER))
    assert draft.references == ("yes",)
    assert draft.meta["type"] == "3"


def test_ids_may_be_numbers():
    draft = convert(FORMAT, RECORD | {"question_id": 5}, tables=tables({"question_id": "5", "answer": 2}))
    assert draft.references == ("2",)


def test_a_name_that_has_its_beginning_already():
    assert convert(FORMAT, RECORD | ANSWER | {"video_name": "v_x"}).media[0].reference == "v_x.mp4"


@pytest.mark.parametrize("given", [{}, tables({"question_id": "other", "answer": "no"})])
def test_without_an_answer_only_for_evaluation(given):
    with pytest.raises(RecordError, match="empty_answer"):
        convert(FORMAT, RECORD, tables=given)
    assert len(convert(FORMAT, RECORD, tables=given, evaluation=True).messages) == 1


@pytest.mark.parametrize("change", [{"question": None}, {"video_name": ""}, {"video_name": []}, {"answer": True}])
def test_bad_records(change):
    with pytest.raises(RecordError, match="bad_schema"):
        convert(FORMAT, RECORD | change)


@pytest.mark.parametrize(
    ("names", "source", "found"),
    [
        (["test_a.json", "train_a.json", "train_q.json"], "train_q.json", "train_a.json"),
        (["train_answers.json"], "train_questions.json", "train_answers.json"),
        (["train_a.json"], "test_q.json", None),
        (["train_a.json"], "train.json", None),
    ],
)
def test_where_the_answers_are_found(names, source, found):
    assert COMPANION.find(names, source) == found


def test_what_is_recognised():
    assert FORMAT.matches(RECORD)
    assert not FORMAT.matches(ANSWER)
    assert COMPANION.fits(ANSWER)
    assert not COMPANION.fits(RECORD | ANSWER)
    assert not COMPANION.fits([])
