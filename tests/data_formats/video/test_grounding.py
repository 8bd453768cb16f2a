"""Sentences and their seconds against drafts written by hand."""

import pytest
from video_drafts import asked, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN
from aria_finetune.data_formats.video import clips
from aria_finetune.data_formats.video.grounding import CHARADES, QVHIGHLIGHTS, TIMECHAT, TIMESTAMPS

ASKED = "When does this happen in the video? a man runs.\nGive the start and the end in seconds."


def expected(medium, answer, windows, meta):
    return asked(medium, ASKED, answer, meta=meta | {"windows": windows, "windows_unit": "seconds"})


class TestCharades:
    def test_a_line(self):
        draft = convert(CHARADES, "AO8RW 0.0 6.9##a man runs.\n")
        assert draft == expected(clip("AO8RW"), "From 0 to 6.9 seconds.", [[0.0, 6.9]], {"video_id": "AO8RW"})

    @pytest.mark.parametrize("line", ["AO8RW 6.9 0.0##a", "AO8RW 3 3##a", "AO8RW 3##a", "a b c##d", "", None, 3])
    def test_bad_lines(self, line):
        with pytest.raises(RecordError, match="bad_schema"):
            convert(CHARADES, line)

    def test_what_is_recognised(self):
        assert CHARADES.matches("AO8RW 0.0 6.9##a man runs.")
        assert CHARADES.matches("AO8RW 0.0 6.9##a man runs.\r\n")
        assert not CHARADES.matches("a.jpg#0\ta man runs.")
        assert not CHARADES.matches({"timestamp": [0, 1]})


TIMESTAMPED_RECORD = {"image_id": "AB.mp4", "caption": "a man runs.", "timestamp": [24.3, 30.4], "id": 0}


class TestTimestamps:
    def test_a_record(self):
        meta = {"image_id": "AB.mp4", "id": 0}
        draft = convert(TIMESTAMPS, TIMESTAMPED_RECORD)
        assert draft == expected(clip("AB.mp4"), "From 24.3 to 30.4 seconds.", [[24.3, 30.4]], meta)

    @pytest.mark.parametrize("key", ["caption", "sentence", "query", "description", "phrase"])
    @pytest.mark.parametrize("name", ["video", "video_path", "image_id", "video_id", "vid"])
    def test_all_names_of_the_fields(self, key, name):
        record = {name: "AB.mp4", key: "a man runs.", "timestamp": ["1", 2.25]}
        assert TIMESTAMPS.matches(record)
        draft = convert(TIMESTAMPS, record)
        assert draft.references == ("From 1 to 2.25 seconds.",)
        assert draft.media == (clip("AB.mp4"),)

    @pytest.mark.parametrize(
        "change",
        [
            {"timestamp": [5, 5]},
            {"timestamp": [5]},
            {"timestamp": [None, 5]},
            {"timestamp": [1, None]},
            {"timestamp": ["<time_token_3>", "<time_token_9>"]},
            {"timestamp": None},
            {"caption": None},
            {"caption": []},
            {"image_id": None},
            {"image_id": ""},
        ],
    )
    def test_bad_records(self, change):
        with pytest.raises(RecordError, match="bad_schema"):
            convert(TIMESTAMPS, TIMESTAMPED_RECORD | change)

    def test_what_is_recognised(self):
        assert TIMESTAMPS.matches(TIMESTAMPED_RECORD)
        assert not TIMESTAMPS.matches({"annotations": [TIMESTAMPED_RECORD]})
        assert not TIMESTAMPS.matches(TIMESTAMPED_RECORD | {"timestamp": "2020-01-01"})
        assert not TIMESTAMPS.matches({"video": "a.mp4", "timestamp": [1, 2]})


class TestTimeChat:
    def test_every_annotation_is_a_record(self):
        error = RecordError("bad_json", "x")
        source = [{"annotations": [TIMESTAMPED_RECORD, 3]}, error]
        records = list(TIMECHAT.unfold(iter(source), PLAIN))
        assert records == [TIMESTAMPED_RECORD, 3, error]
        assert convert(TIMECHAT, records[0]) == convert(TIMESTAMPS, TIMESTAMPED_RECORD)

    @pytest.mark.parametrize("document", [[], {}, {"annotations": None}])
    def test_a_wrong_document(self, document):
        bad, kept = TIMECHAT.unfold(iter([document, {"annotations": [3]}]), PLAIN)
        assert isinstance(bad, RecordError)
        assert bad.reason == "bad_schema"
        assert kept == 3

    def test_what_is_recognised(self):
        assert TIMECHAT.matches({"annotations": [TIMESTAMPED_RECORD]})
        assert not TIMECHAT.matches({"annotations": [{"image_id": 1, "caption": "a"}], "images": []})
        assert not TIMECHAT.matches({"annotations": []})
        assert not TIMECHAT.matches({"annotations": [[]]})
        assert not TIMECHAT.matches(TIMESTAMPED_RECORD)


HIGHLIGHT_RECORD = {
    "qid": 8,
    "query": "a man runs.",
    "duration": 150,
    "vid": "bP5_660.0_810.0",
    "relevant_windows": [[0, 16], [30, 42.5]],
    "saliency_scores": [[4, 1, 1]],
}


class TestQVHighlights:
    def test_several_windows_count_from_the_start_of_the_clip(self):
        meta = {"qid": 8, "duration": 150, "vid": "bP5_660.0_810.0", "saliency_scores": [[4, 1, 1]]}
        windows = [[0.0, 16.0], [30.0, 42.5]]
        medium = clips.clip("bP5_660.0_810.0", "v_bP5_660.0_810.0")
        answer = "From 0 to 16 seconds and from 30 to 42.5 seconds."
        assert convert(QVHIGHLIGHTS, HIGHLIGHT_RECORD) == expected(medium, answer, windows, meta)
        assert medium.reference == "bP5_660.0_810.0.mp4"

    @pytest.mark.parametrize("windows", [None, []])
    def test_without_windows_only_for_evaluation(self, windows):
        record = HIGHLIGHT_RECORD | {"relevant_windows": windows}
        with pytest.raises(RecordError, match="empty_answer"):
            convert(QVHIGHLIGHTS, record)
        assert len(convert(QVHIGHLIGHTS, record, evaluation=True).messages) == 1

    @pytest.mark.parametrize(
        "change", [{"relevant_windows": [[2, 1]]}, {"relevant_windows": [3]}, {"query": None}, {"vid": None}]
    )
    def test_bad_records(self, change):
        with pytest.raises(RecordError, match="bad_schema"):
            convert(QVHIGHLIGHTS, HIGHLIGHT_RECORD | change)

    def test_what_is_recognised(self):
        assert QVHIGHLIGHTS.matches(HIGHLIGHT_RECORD)
        assert QVHIGHLIGHTS.matches({"qid": 1, "query": "q", "vid": "v", "duration": 3})
        assert not QVHIGHLIGHTS.matches({"query": "q", "response": "r"})
