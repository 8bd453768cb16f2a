"""ShareGPT4Video records against drafts written by hand."""

import pytest
from video_drafts import asked, candidates, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.video import clips
from aria_finetune.data_formats.video.sharegpt4video import FORMAT

STEPS = [{"idx": "1", "content": "A stop."}, {"idx": "2", "content": "The bus has come."}]
WHOLE = {"idx": "-1", "content": "A man waits until a bus comes."}
RECORD = {"video_id": "x", "video_path": "pexels/x.mp4", "captions": [*STEPS, WHOLE], "timestamp": ["0", "2"]}
CLIP = clips.clip("pexels/x.mp4", "x.mp4")
PROMPT = "Describe the video."


def test_the_caption_of_the_whole_clip_and_the_others_as_metadata():
    meta = {"video_id": "x", "captions": STEPS, "timestamp": ["0", "2"]}
    repairs = ("step_captions_kept_as_metadata",)
    assert convert(FORMAT, RECORD) == asked(CLIP, PROMPT, WHOLE["content"], meta=meta, repairs=repairs)


def test_the_number_may_be_a_number():
    draft = convert(FORMAT, RECORD | {"captions": [WHOLE | {"idx": -1}]})
    assert draft.references == (WHOLE["content"],)
    assert draft.repairs == ()


def test_without_one_of_the_whole_every_caption_is_a_record():
    drafts = candidates(FORMAT, RECORD | {"captions": ["One.", {"content": "Two."}]})
    meta = {"video_id": "x", "timestamp": ["0", "2"]}
    assert drafts == [asked(CLIP, PROMPT, text, meta=meta) for text in ("One.", "Two.")]


def test_a_bad_caption_does_not_lose_the_others():
    found = candidates(FORMAT, RECORD | {"captions": [3, {"idx": "1"}, "Two."]})
    assert [getattr(candidate, "reason", "fine") for candidate in found] == ["bad_schema", "bad_schema", "fine"]


def test_without_a_path_the_id_names_the_clip():
    assert convert(FORMAT, RECORD | {"video_path": ""}).media == (clips.clip("x"),)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"captions": []}, "bad_schema"),
        ({"captions": None}, "bad_schema"),
        ({"captions": [WHOLE | {"content": None}]}, "bad_schema"),
        ({"video_path": None, "video_id": None}, "bad_schema"),
        ({"captions": [WHOLE | {"content": ""}]}, "empty_answer"),
    ],
)
def test_bad_records(change, reason):
    with pytest.raises(RecordError, match=reason):
        convert(FORMAT, RECORD | change)


def test_what_is_recognised():
    assert FORMAT.matches(RECORD)
    assert not FORMAT.matches({"video": "x", "caption": "y"})
