"""MVBench, LVBench and Video-MME against drafts written by hand."""

import pytest
from video_drafts import asked, candidates, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.video import clips
from aria_finetune.data_formats.video.video_choices import LVBENCH, MVBENCH, VIDEO_MME

MVBENCH_RECORD = {
    "video": "Z.mp4",
    "question": "What?",
    "candidates": ["Ate.", "Slept.", "Ran."],
    "answer": "Slept.",
    "start": 1.5,
    "end": 17.1,
}
MVBENCH_ACCEPTED = ("B", "Slept.", "B. Slept.")
MVBENCH_QUESTION = "What?\nA. Ate.\nB. Slept.\nC. Ran."


class TestMVBench:
    def test_a_question_about_a_part_of_a_clip(self):
        expected = asked(clip("Z.mp4", 1.5, 17.1), MVBENCH_QUESTION, "B. Slept.", references=MVBENCH_ACCEPTED)
        assert convert(MVBENCH, MVBENCH_RECORD) == expected

    @pytest.mark.parametrize("answer", ["Slept.", "B", "b", "(B)", "(B) Slept.", "B. Slept.", "B) Slept."])
    def test_the_answer_in_all_its_spellings(self, answer):
        assert convert(MVBENCH, MVBENCH_RECORD | {"answer": answer}).references == MVBENCH_ACCEPTED

    def test_letters_in_the_options_are_written_once(self):
        record = MVBENCH_RECORD | {"candidates": ["(A) Ate.", "(B) Slept.", "(C) Ran."], "answer": "(B) Slept."}
        draft = convert(MVBENCH, record)
        assert draft.messages[0].content[1].text == MVBENCH_QUESTION
        assert draft.references == MVBENCH_ACCEPTED

    def test_candidates_may_be_called_options(self):
        record = {key: value for key, value in MVBENCH_RECORD.items() if key != "candidates"}
        assert convert(MVBENCH, record | {"options": MVBENCH_RECORD["candidates"]}) == convert(MVBENCH, MVBENCH_RECORD)

    def test_all_else_is_metadata(self):
        record = MVBENCH_RECORD | {"fps": 3, "subtitle": "hello", "time_reference": "00:10-75:57", "duration": 9}
        assert convert(MVBENCH, record).meta == {
            "fps": 3,
            "subtitle": "hello",
            "time_reference": "00:10-75:57",
            "time_reference_seconds": [10.0, 4557.0],
            "duration": 9,
        }

    @pytest.mark.parametrize("answers", ["letter", "text"])
    def test_the_wording_is_chosen(self, answers):
        draft = convert(MVBENCH, MVBENCH_RECORD, answers=answers)
        assert draft.messages[1].content[0].text == {"letter": "B", "text": "Slept."}[answers]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"answer": "Sang."}, "bad_schema"),
            ({"answer": 1}, "bad_schema"),
            ({"candidates": ["Slept.", "Slept."]}, "bad_schema"),
            ({"candidates": []}, "bad_schema"),
            ({"candidates": "['a', 'b']"}, "bad_schema"),
            ({"candidates": ["a", 5]}, "bad_schema"),
            ({"video": None}, "bad_schema"),
            ({"question": None}, "bad_schema"),
            ({"start": 20}, "bad_schema"),
            ({"end": "x"}, "bad_schema"),
            ({"answer": None}, "empty_answer"),
        ],
    )
    def test_bad_records(self, change, reason):
        with pytest.raises(RecordError, match=reason):
            convert(MVBENCH, MVBENCH_RECORD | change)

    def test_without_an_answer_only_for_evaluation(self):
        record = {key: value for key, value in MVBENCH_RECORD.items() if key != "answer"}
        assert len(convert(MVBENCH, record, evaluation=True).messages) == 1

    def test_what_is_recognised(self):
        assert MVBENCH.matches(MVBENCH_RECORD)
        assert MVBENCH.matches({"video": "a", "question": "b", "options": []})
        assert not MVBENCH.matches(MVBENCH_RECORD | {"correct_choice": 1})
        assert not MVBENCH.matches({"video": "a", "question": "b", "answer": "c"})


LVBENCH_PAIR = {
    "uid": "7",
    "question": "Who wins?\n(A) red\n(B) blue",
    "answer": "B",
    "question_type": ["entity"],
    "time_reference": "00:00-75:57",
}
LVBENCH_RECORD = {"key": "abc", "type": "sport", "qa": [LVBENCH_PAIR], "video_info": {"fps": 30}}


class TestLVBench:
    def test_a_question_about_the_whole_video(self):
        meta = {
            "key": "abc",
            "type": "sport",
            "video_info": {"fps": 30},
            "uid": "7",
            "question_type": ["entity"],
            "time_reference": "00:00-75:57",
            "time_reference_seconds": [0.0, 4557.0],
        }
        accepted = ("B", "blue", "B. blue")
        expected = asked(clip("abc"), "Who wins?\nA. red\nB. blue", "B. blue", references=accepted, meta=meta)
        assert convert(LVBENCH, LVBENCH_RECORD) == expected

    def test_a_bad_question_does_not_lose_the_others(self):
        bad = [3, {"uid": "8"}, LVBENCH_PAIR | {"question": "Who?"}, LVBENCH_PAIR | {"answer": "C"}]
        found = candidates(LVBENCH, LVBENCH_RECORD | {"qa": [*bad, LVBENCH_PAIR]})
        assert [getattr(candidate, "reason", "fine") for candidate in found] == ["bad_schema"] * 4 + ["fine"]

    def test_an_option_may_go_on_in_the_next_line_and_letters_count(self):
        question = "Is it (A)?\nSay so.\n(A) one\nand more\n(B) two (C) not"
        draft = convert(LVBENCH, LVBENCH_RECORD | {"qa": [LVBENCH_PAIR | {"question": question}]})
        assert draft.messages[0].content[1].text == "Is it (A)?\nSay so.\nA. one\nand more\nB. two (C) not"

    @pytest.mark.parametrize("time", ["soon", None, 5, "1:2:3:4"])
    def test_a_time_that_is_no_time_is_left_alone(self, time):
        draft = convert(LVBENCH, LVBENCH_RECORD | {"qa": [LVBENCH_PAIR | {"time_reference": time}]})
        assert draft.meta["time_reference"] == time
        assert "time_reference_seconds" not in draft.meta

    @pytest.mark.parametrize("change", [{"qa": []}, {"qa": {}}, {"key": None}])
    def test_bad_records(self, change):
        with pytest.raises(RecordError, match="bad_schema"):
            candidates(LVBENCH, LVBENCH_RECORD | change)

    def test_what_is_recognised(self):
        assert LVBENCH.matches(LVBENCH_RECORD)
        assert not LVBENCH.matches({"video": "a", "QA": []})


VIDEO_MME_ROW = {
    "video_id": "001",
    "videoID": "fFjv",
    "duration": "short",
    "question": "Which fruit?",
    "options": ["A. Apples.", "B. Pears.", "C. Plums.", "D. Figs."],
    "answer": "C",
}


class TestVideoMME:
    def test_a_row(self):
        meta = {"video_id": "001", "videoID": "fFjv", "duration": "short"}
        question = "Which fruit?\nA. Apples.\nB. Pears.\nC. Plums.\nD. Figs."
        accepted = ("C", "Plums.", "C. Plums.")
        medium = clips.clip("fFjv", "data/fFjv")
        assert convert(VIDEO_MME, VIDEO_MME_ROW) == asked(medium, question, "C. Plums.", references=accepted, meta=meta)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"answer": "E"}, "bad_schema"),
            ({"options": None}, "bad_schema"),
            ({"videoID": None}, "bad_schema"),
            ({"question": 3}, "bad_schema"),
            ({"answer": ""}, "empty_answer"),
        ],
    )
    def test_bad_rows(self, change, reason):
        with pytest.raises(RecordError, match=reason):
            convert(VIDEO_MME, VIDEO_MME_ROW | change)

    def test_what_is_recognised(self):
        assert VIDEO_MME.matches(VIDEO_MME_ROW)
        assert not VIDEO_MME.matches({"video_id": "001", "question": "q", "options": []})
