"""TGIF-QA rows against drafts written by hand."""

import pytest
from video_drafts import asked, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.video import clips
from aria_finetune.data_formats.video.tgif_qa import FORMAT

OPTIONS = {"a1": "jump", "a2": "blink", "a3": "nod", "a4": "roll", "a5": "walk"}
ROW = {"gif_name": "t_250", "question": "What 3 times ?", **OPTIONS, "answer": "4", "vid_id": "ACTION4", "key": "26"}
COUNT = {"gif_name": "t_250", "question": "How many times ?", "answer": "3", "vid_id": "COUNT12", "key": "52"}
CLIP = clips.clip("t_250", "gifs/t_250", endings=(".gif", *clips.ENDINGS))


def test_the_answer_is_the_number_of_an_option():
    question = "What 3 times ?\nA. jump\nB. blink\nC. nod\nD. roll\nE. walk"
    meta = {"gif_name": "t_250", "vid_id": "ACTION4", "key": "26"}
    accepted = ("E", "walk", "E. walk")
    assert convert(FORMAT, ROW) == asked(CLIP, question, "E. walk", references=accepted, meta=meta)


def test_without_options_the_answer_is_what_it_seems():
    meta = {"gif_name": "t_250", "vid_id": "COUNT12", "key": "52"}
    assert convert(FORMAT, COUNT) == asked(CLIP, "How many times ?", "3", meta=meta)


def test_a_frame_question_keeps_its_description_as_metadata():
    draft = convert(FORMAT, COUNT | {"answer": "cookie", "type": "0", "description": "a cookie ."})
    assert draft.references == ("cookie",)
    assert (draft.meta["type"], draft.meta["description"]) == ("0", "a cookie .")


def test_the_clip_is_a_gif_read_as_a_video():
    (medium,) = convert(FORMAT, COUNT).media
    assert (medium.kind, medium.reference) == ("video", "t_250.gif")
    assert {"gifs/t_250.gif", "t_250.mp4", "videos/t_250.mp4"} <= set(medium.alternatives)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ROW | {"answer": "5"}, "bad_schema"),
        (ROW | {"answer": "walk"}, "bad_schema"),
        (ROW | {"a2": None}, "bad_schema"),
        (ROW | {"gif_name": ""}, "bad_schema"),
        (ROW | {"question": None}, "bad_schema"),
        (ROW | {"answer": ""}, "empty_answer"),
        (COUNT | {"answer": ""}, "empty_answer"),
    ],
)
def test_bad_rows(row, reason):
    with pytest.raises(RecordError, match=reason):
        convert(FORMAT, row)


def test_what_is_recognised():
    assert FORMAT.matches(ROW)
    assert FORMAT.matches(COUNT)
    assert not FORMAT.matches({"question": "q", "a1": "a"})
