"""LongVideoBench: the question, and the subtitles between the pieces of the video."""

import json
from dataclasses import replace

import pytest
from video_drafts import asked, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.reading.subtitles import Cue
from aria_finetune.data_formats.video.longvideobench import FORMAT, FRAMES, MAX_PIECES, SHORTEST_PIECE, interleaved

RECORD = {
    "video_path": "86.mp4",
    "subtitle_path": "86_en.json",
    "question": "What?",
    "candidates": ["a lamp", "a cup"],
    "correct_choice": 1,
    "duration": 100,
    "starting_timestamp_for_subtitles": 0,
    "id": "86_0",
}
META = {"subtitle_path": "86_en.json", "duration": 100, "starting_timestamp_for_subtitles": 0, "id": "86_0"}
QUESTION = "What?\nA. a lamp\nB. a cup"
ACCEPTED = ("B", "a cup", "B. a cup")
WHOLE = clip("86.mp4")


def files(**contents):
    """A `beside` of files whose names have / for __ and . for _."""
    known = {name.replace("__", "/").replace("_json", ".json"): data for name, data in contents.items()}

    def beside(name):
        if name not in known:
            raise RecordError("media_missing", name)
        return known[name] if isinstance(known[name], bytes) else json.dumps(known[name]).encode()

    return beside


def piece(start, end, frames):
    return replace(WHOLE, start=start, end=end, num_frames=frames)


def shown(draft):
    """The user turn as texts and spans of seconds."""
    spans = [(medium.start, medium.end) for medium in draft.media]
    return [part.text if part.media is None else spans[part.media] for part in draft.messages[0].content]


class TestQuestions:
    def test_without_subtitles_the_video_is_whole(self):
        expected = asked(WHOLE, QUESTION, "B. a cup", references=ACCEPTED, meta=META, repairs=["subtitles_missing"])
        assert convert(FORMAT, RECORD) == expected

    @pytest.mark.parametrize("name", [None, ""])
    def test_no_subtitles_are_named(self, name):
        assert convert(FORMAT, RECORD | {"subtitle_path": name}).repairs == ("subtitles_missing",)

    @pytest.mark.parametrize("filler", ["N/A", None, ""])
    def test_options_in_columns(self, filler):
        columns = {"option0": "a lamp", "option1": "a cup", "option2": filler, "option3": filler, "option4": filler}
        record = {key: value for key, value in RECORD.items() if key != "candidates"} | columns
        draft = convert(FORMAT, record)
        assert draft.messages[0].content[1].text == QUESTION
        assert draft.references == ACCEPTED
        assert draft.meta == META

    def test_an_option_that_says_not_available_may_be_an_answer(self):
        columns = {"candidates": None, "option0": "N/A", "option1": "a cup"}
        assert convert(FORMAT, RECORD | columns).references == ACCEPTED

    @pytest.mark.parametrize("choice", [None, -1])
    def test_without_an_answer_only_for_evaluation(self, choice):
        with pytest.raises(RecordError, match="empty_answer"):
            convert(FORMAT, RECORD | {"correct_choice": choice})
        assert len(convert(FORMAT, RECORD | {"correct_choice": choice}, evaluation=True).messages) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"correct_choice": 2},
            {"correct_choice": "@"},
            {"candidates": "a"},
            {"candidates": None},
            {"video_path": None},
            {"question": None},
            {"duration": "long"},
            {"subtitle_path": 3},
        ],
    )
    def test_bad_records(self, change):
        with pytest.raises(RecordError, match="bad_schema"):
            convert(FORMAT, RECORD | change)

    def test_what_is_recognised(self):
        assert FORMAT.matches(RECORD)
        assert FORMAT.matches({"question": "q", "video_path": "v", "subtitle_path": None, "option0": "a"})
        assert not FORMAT.matches({"question": "q", "video": "v", "candidates": []})


class TestSubtitles:
    def test_the_text_of_a_cue_comes_behind_the_piece_that_leads_up_to_its_middle(self):
        cues = [{"timestamp": [10, 20.0], "text": "Hello."}, {"timestamp": [50.0, 60], "text": " Bye. "}]
        draft = convert(FORMAT, RECORD, beside=files(**{"86_en_json": cues}))
        assert shown(draft) == [(0.0, 15.0), "Hello.\n", (15.0, 55.0), "Bye.\n", (55.0, None), QUESTION]
        assert [medium.num_frames for medium in draft.media] == [FRAMES // 3] * 3
        assert {medium.reference for medium in draft.media} == {"86.mp4"}
        assert draft.repairs == ()
        assert draft.references == ACCEPTED

    def test_the_other_shape_in_the_other_folder(self):
        cues = [{"start": "00:01:00.5", "end": "00:01:01.5", "line": "Hello."}]
        draft = convert(FORMAT, RECORD, beside=files(subtitles__86_en_json=cues))
        assert shown(draft) == [(0.0, 61.0), "Hello.\n", (61.0, None), QUESTION]

    def test_the_offset_is_subtracted_and_what_lies_outside_left_out(self):
        cues = [{"timestamp": [at, at + 10], "text": str(at)} for at in (0, 495, 540, 595, 600, 700)]
        record = RECORD | {"starting_timestamp_for_subtitles": 500}
        draft = convert(FORMAT, record, beside=files(**{"86_en_json": cues}))
        assert shown(draft) == [
            (0.0, 2.5),
            "495\n",
            (2.5, 45.0),
            "540\n",
            (45.0, 97.5),
            "595\n",
            (97.5, None),
            QUESTION,
        ]
        assert draft.repairs == ("subtitles_outside_dropped",)

    def test_a_cue_without_end_lasts_until_the_next(self):
        cues = [{"timestamp": [10, None], "text": "a"}, {"timestamp": [30, None], "text": "b"}]
        draft = convert(FORMAT, RECORD, beside=files(**{"86_en_json": cues}))
        assert shown(draft)[:4] == [(0.0, 20.0), "a\n", (20.0, 30.0), "b\n"]

    @pytest.mark.parametrize("cues", [[], [{"timestamp": [1, 2], "text": " "}]])
    def test_no_word_is_said(self, cues):
        draft = convert(FORMAT, RECORD, beside=files(**{"86_en_json": cues}))
        assert shown(draft) == [(None, None), QUESTION]
        assert draft.repairs == ()

    def test_subtitles_of_another_kind(self):
        data = b"1\n00:00:10,000 --> 00:00:20,000\nHello.\n"
        draft = convert(FORMAT, RECORD | {"subtitle_path": "86.srt"}, beside=lambda _: data)
        assert shown(draft) == [(0.0, 15.0), "Hello.\n", (15.0, None), QUESTION]

    @pytest.mark.parametrize("data", [b"{", b"[NaN]", b"\xff", b"\xef\xbb\xbfx"])
    def test_damaged_subtitles(self, data):
        with pytest.raises(RecordError, match="media_unreadable"):
            convert(FORMAT, RECORD, beside=lambda _: data)
        with pytest.raises(RecordError, match="media_unreadable"):
            convert(FORMAT, RECORD | {"subtitle_path": "86.srt"}, beside=lambda _: data)

    @pytest.mark.parametrize(
        "cues",
        [
            {},
            [3],
            [{"text": "a"}],
            [{"timestamp": [1], "text": "a"}],
            [{"timestamp": [None, 1], "text": "a"}],
            [{"timestamp": ["x", 1], "text": "a"}],
            [{"timestamp": [1, 2]}],
            [{"start": "1:2:3:4", "end": "00:00:02", "line": "a"}],
            [{"start": 1, "end": 2, "line": None}],
        ],
    )
    def test_wrong_subtitles(self, cues):
        with pytest.raises(RecordError, match="bad_schema"):
            convert(FORMAT, RECORD, beside=files(**{"86_en_json": cues}))

    def test_a_path_that_is_not_allowed_is_told(self):
        def beside(name):
            raise RecordError("media_unsafe_path", name)

        with pytest.raises(RecordError, match="media_unsafe_path"):
            convert(FORMAT, RECORD, beside=beside)


class TestPieces:
    def spans(self, pieces):
        return [piece if isinstance(piece, str) else (piece.start, piece.end) for piece in pieces]

    @pytest.mark.parametrize("count", [62, 63, 64, 126, 127, 1000])
    def test_there_are_never_more_than_the_bound_and_no_word_is_lost(self, count):
        cues = [Cue(10.0 * number, 10.0 * number + 10, f"w{number}") for number in range(count)]
        pieces = interleaved(WHOLE, cues, 10.0 * count)
        videos = [piece for piece in pieces if not isinstance(piece, str)]
        assert MAX_PIECES // 2 <= len(videos) <= MAX_PIECES
        assert [text for text in pieces if isinstance(text, str)] == [f"w{number}\n" for number in range(count)]
        assert [video.start for video in videos[1:]] == [video.end for video in videos[:-1]]
        assert (videos[0].start, videos[-1].end) == (0.0, None)
        assert {video.num_frames for video in videos} == {max(1, FRAMES // len(videos))}

    def test_cues_that_follow_fast_share_a_piece(self):
        cues = [Cue(5.0, 5.0, "a"), Cue(5.5, 5.5, "b"), Cue(9.0, 9.0, "c")]
        assert self.spans(interleaved(WHOLE, cues, 20.0)) == [(0.0, 5.0), "a\n", (5.0, 9.0), "b\n", "c\n", (9.0, None)]

    def test_no_piece_is_shorter_than_the_shortest(self):
        cues = [Cue(number / 10, number / 10, "w") for number in range(200)]
        videos = [piece for piece in interleaved(WHOLE, cues, 20.0) if not isinstance(piece, str)]
        assert all((video.end or 20.0) - video.start >= SHORTEST_PIECE for video in videos)

    def test_a_short_end_belongs_to_the_piece_before(self):
        cues = [Cue(5.0, 5.0, "a"), Cue(19.5, 19.5, "b"), Cue(19.9, 19.9, "c")]
        assert self.spans(interleaved(WHOLE, cues, 20.0)) == [(0.0, 5.0), "a\n", (5.0, None), "b\n", "c\n"]

    def test_without_a_duration_the_rest_is_shown(self):
        assert self.spans(interleaved(WHOLE, [Cue(5.0, 7.0, "a")], None)) == [(0.0, 6.0), "a\n", (6.0, None)]

    def test_a_clip_shorter_than_a_piece(self):
        assert self.spans(interleaved(WHOLE, [Cue(0.1, 0.3, "a")], 0.5)) == [(0.0, None), "a\n"]
