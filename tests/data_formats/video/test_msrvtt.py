"""MSR-VTT and its like against drafts written by hand."""

import pytest
from video_drafts import asked, candidates, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN
from aria_finetune.data_formats.video import clips
from aria_finetune.data_formats.video.msrvtt import CAPTION_LISTS, CAPTION_ROWS, DOCUMENT, QUESTIONS

PROMPT = "Describe the video."


VIDEO = {"video_id": "video0", "category": 9, "url": "u", "start time": 1.5, "end time": 9.0, "split": "train"}
SENTENCE = {"video_id": "video0", "sen_id": 3, "caption": "a car"}


class TestDocument:
    def unfolded(self, *documents):
        return list(DOCUMENT.unfold(iter(documents), PLAIN))

    def test_every_sentence_is_a_record_with_what_is_known_of_its_video(self):
        document = {"info": {}, "videos": [VIDEO], "sentences": [SENTENCE, SENTENCE | {"caption": "b"}]}
        drafts = [convert(DOCUMENT, record) for record in self.unfolded(document)]
        assert drafts[0] == asked(clip("video0"), PROMPT, "a car", meta=VIDEO | {"sen_id": 3})
        assert drafts[1].references == ("b",)

    def test_the_times_are_those_of_another_video(self):
        (record,) = self.unfolded({"videos": [VIDEO], "sentences": [SENTENCE]})
        (medium,) = convert(DOCUMENT, record).media
        assert (medium.start, medium.end) == (None, None)

    def test_a_sentence_of_an_unknown_video(self):
        (record,) = self.unfolded({"videos": [VIDEO, 3], "sentences": [SENTENCE | {"video_id": 4}]})
        draft = convert(DOCUMENT, record)
        assert draft.media == (clip("4"),)
        assert draft.meta == {"video_id": 4, "sen_id": 3}

    def test_a_bad_sentence_does_not_lose_the_others(self):
        sentences = [SENTENCE, 3, {"video_id": [], "caption": "x"}, {"video_id": "v"}, SENTENCE]
        records = self.unfolded({"videos": [], "sentences": sentences})
        assert len(records) == 5
        for bad in records[1:4]:
            with pytest.raises(RecordError, match="bad_schema"):
                convert(DOCUMENT, bad)
        assert convert(DOCUMENT, records[4]).references == ("a car",)

    def test_errors_are_passed_on_and_a_wrong_document_is_one(self):
        error = RecordError("bad_json", "x")
        assert self.unfolded(error) == [error]
        good = {"videos": [], "sentences": [SENTENCE]}
        for wrong in ([], {"videos": []}, {"videos": {}, "sentences": []}, {"videos": [], "sentences": None}):
            (bad, kept) = self.unfolded(wrong, good)
            assert isinstance(bad, RecordError)
            assert bad.reason == "bad_schema"
            assert kept["sentence"] == SENTENCE

    def test_an_empty_caption(self):
        (record,) = self.unfolded({"videos": [], "sentences": [SENTENCE | {"caption": " "}]})
        with pytest.raises(RecordError, match="empty_answer"):
            convert(DOCUMENT, record)

    def test_what_is_recognised(self):
        assert DOCUMENT.matches({"videos": [], "sentences": []})
        assert not DOCUMENT.matches({"videos": ["a.mp4"], "messages": []})
        assert not DOCUMENT.matches({"videos": "a.mp4", "sentences": []})


CAPTION_ROW = {"key": "ret0", "vid_key": "msr1", "video_id": "video1", "sentence": "a dog"}


class TestRows:
    def test_a_row(self):
        meta = {"key": "ret0", "vid_key": "msr1", "video_id": "video1"}
        assert convert(CAPTION_ROWS, CAPTION_ROW) == asked(clip("video1"), PROMPT, "a dog", meta=meta)

    @pytest.mark.parametrize("change", [{"video_id": ""}, {"sentence": None}, {"video_id": None}])
    def test_bad_rows(self, change):
        with pytest.raises(RecordError, match="bad_schema"):
            convert(CAPTION_ROWS, CAPTION_ROW | change)

    def test_what_is_recognised(self):
        assert CAPTION_ROWS.matches(CAPTION_ROW)
        assert not CAPTION_ROWS.matches(CAPTION_ROW | {"timestamp": [1, 2]})
        assert not CAPTION_ROWS.matches("video1,a dog")


class TestLists:
    def test_every_caption_is_a_record(self):
        record = {"video": "a.avi", "caption": ["one", "two", "one"], "source": "x"}
        drafts = candidates(CAPTION_LISTS, record)
        assert drafts == [asked(clip("a.avi"), PROMPT, text, meta={"source": "x"}) for text in ("one", "two", "one")]

    def test_one_caption_as_text(self):
        assert convert(CAPTION_LISTS, {"video": "a", "caption": "one"}) == asked(clip("a"), PROMPT, "one")

    def test_a_bad_caption_does_not_lose_the_others(self):
        found = candidates(CAPTION_LISTS, {"video": "a", "caption": ["one", None, "two"]})
        assert [type(candidate).__name__ for candidate in found] == ["Draft", "RecordError", "Draft"]
        assert found[1].reason == "bad_schema"

    @pytest.mark.parametrize("record", [{"video": None, "caption": "a"}, {"video": "a"}, {}, [], None])
    def test_bad_records(self, record):
        with pytest.raises(RecordError, match="bad_schema"):
            candidates(CAPTION_LISTS, record)

    def test_what_is_recognised(self):
        assert CAPTION_LISTS.matches({"video": "a", "caption": ["x"]})
        for other in ({"timestamp": [1, 2]}, {"conversations": []}, {"QA": []}, {"image": "a"}, {"video": b"1"}):
            assert not CAPTION_LISTS.matches({"video": "a", "caption": ["x"], **other})


ASKED_RECORD = {"answer": "couch", "question": "what is it?", "video_id": "video6", "answer_type": "what"}


class TestQuestions:
    def test_a_question(self):
        meta = {"video_id": "video6", "answer_type": "what"}
        assert convert(QUESTIONS, ASKED_RECORD) == asked(clip("video6"), "what is it?", "couch", meta=meta)

    def test_a_number_stands_for_the_names_of_two_data_sets(self):
        record = {"answer": "car", "category_id": 3, "id": 9, "question": "what?", "video_id": 7}
        assert convert(QUESTIONS, record).media == (clips.clip("video7", "vid7", "7"),)

    def test_a_video_named_by_its_path(self):
        record = {"video": "a/b.mp4", "video_id": "x", "question": "what?", "answer": 3}
        repairs = ("number_as_text",)
        expected = asked(clip("a/b.mp4"), "what?", "3", meta={"video_id": "x"}, repairs=repairs)
        assert convert(QUESTIONS, record) == expected

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"answer": ""}, "empty_answer"),
            ({"answer": None}, "empty_answer"),
            ({"answer": [None]}, "bad_schema"),
            ({"question": 3}, "bad_schema"),
            ({"video_id": None}, "bad_schema"),
            ({"video_id": True}, "bad_schema"),
            ({"answer": "\udcff"}, "bad_text"),
        ],
    )
    def test_bad_records(self, change, reason):
        with pytest.raises(RecordError, match=reason):
            convert(QUESTIONS, ASKED_RECORD | change)

    def test_what_is_recognised(self):
        assert QUESTIONS.matches(ASKED_RECORD)
        assert QUESTIONS.matches({"video": "a", "question": "q", "answer": "a", "question_id": 1})
        for other in ("candidates", "options", "option0", "a0", "correct_choice", "image"):
            assert not QUESTIONS.matches(ASKED_RECORD | {other: "x"})
        assert not QUESTIONS.matches({"question": "q", "answer": "a"})
        assert not QUESTIONS.matches({"video": {"bytes": b"1"}, "question": "q", "answer": "a"})
