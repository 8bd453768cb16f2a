"""MSR-VTT, MSVD and their like: captions of clips, and short questions with short answers.

Captions stand in the one document of MSR-VTT (`videos` and `sentences`), in tables (`video_id`, `sentence`), or as
a list per clip (`video`, `caption`). Every caption is a record of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference
from aria_finetune.data_formats.video import clips

_VIDEO_KEYS = ("video", "video_path", "video_id")
_OTHER_FORMATS = frozenset({
    "QA", "a0", "a1", "candidates", "choices", "conversations", "correct_choice", "frame_count", "images", "image",
    "messages", "option0", "option", "options", "q", "timestamp", "timestamps", "videoID",
})  # fmt: skip


def _holds_video(record: dict[str, Any]) -> bool:
    """Whether the record is a row of a table that holds its video itself, which is a format of its own."""
    return isinstance(record.get("video"), bytes | dict)


def _caption(clip: MediaReference, caption: str, meta: dict[str, Any], repairs: tuple[str, ...]) -> Draft:
    return questions.asked([clip], questions.VIDEO_PROMPT, caption, references=(caption,), meta=meta, repairs=repairs)


# The document of MSR-VTT.


def _is_document(record: object) -> bool:
    return isinstance(record, dict) and isinstance(record.get("videos"), list) and "sentences" in record


def _sentences(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """Each sentence with what the document says of its video, as `{"sentence", "video"}`."""
    for record in records:
        try:
            yield from [record] if isinstance(record, RecordError) else _pairs(record)
        except RecordError as error:
            yield error


def _pairs(record: object) -> list[dict[str, object]]:
    document = fields.mapping(record, "the document")
    videos = fields.array(fields.required(document, "videos", "the document"), "videos")
    sentences = fields.array(fields.required(document, "sentences", "the document"), "sentences")
    of_id = {video.get("video_id"): video for video in videos if isinstance(video, dict) and _is_id(video)}
    return [{"sentence": sentence, "video": of_id.get(_id_of(sentence), {})} for sentence in sentences]


def _id_of(sentence: object) -> str | int | None:
    return sentence["video_id"] if isinstance(sentence, dict) and _is_id(sentence) else None


def _is_id(value: dict[str, Any]) -> bool:
    return isinstance(value.get("video_id"), str | int)


def _convert_sentence(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """One caption of the document; raises `bad_schema`."""
    pair = fields.mapping(record, "the record")
    sentence = fields.mapping(pair.get("sentence"), "the sentence")
    name = clips.identifier(fields.required(sentence, "video_id", "the sentence"), "video_id")
    caption = fields.text(fields.required(sentence, "caption", "the sentence"), "caption")
    meta, repairs = media_bytes.rest(fields.mapping(pair.get("video"), "the video") | sentence, ("caption",))
    yield _caption(clips.clip(name), caption, meta, repairs)


DOCUMENT = Format(
    name="msrvtt",
    title="MSR-VTT's document of videos and sentences",
    schema=(
        '{"videos": [{"video_id": ID, "category": N, "url": URL, "start time": S, "end time": S, "split": NAME}],\n'
        ' "sentences": [{"video_id": ID, "sen_id": N, "caption": TEXT}], "info": {...}}'
    ),
    example={
        "info": {"year": "2016"},
        "videos": [{"video_id": "video0", "category": 9, "start time": 12.5, "end time": 20.0, "split": "train"}],
        "sentences": [
            {"video_id": "video0", "sen_id": 0, "caption": "a car drives along the coast"},
            {"video_id": "video0", "sen_id": 1, "caption": "a red car near the sea"},
        ],
    },
    traps=(
        "every sentence is a record; a video has about 20",
        "start time and end time are those of the YouTube video; the clips are cut already, so they stay metadata",
    ),
    keys=frozenset({"info", "videos", "sentences"}),
    matches=_is_document,
    convert=_convert_sentence,
    unfold=_sentences,
)


# One caption per row.


def _is_caption_row(record: object) -> bool:
    return isinstance(record, dict) and {"video_id", "sentence"} <= record.keys() and not _OTHER_FORMATS & record.keys()


def _convert_row(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The caption of a row; raises `bad_schema`."""
    row = fields.mapping(record, "the record")
    name = clips.identifier(fields.required(row, "video_id", "the record"), "video_id")
    meta, repairs = media_bytes.rest(row, ("sentence",))
    caption = fields.text(fields.required(row, "sentence", "the record"), "sentence")
    yield _caption(clips.clip(name), caption, meta, repairs)


CAPTION_ROWS = Format(
    name="msrvtt-captions",
    title="A table of clips and captions, as the retrieval splits of MSR-VTT",
    schema="key,vid_key,video_id,sentence",
    example={"key": "ret0", "vid_key": "msr1", "video_id": "video1", "sentence": "a dog swims in a lake"},
    traps=("a clip is <video_id>.mp4 or another usual ending, also in videos/ or video/",),
    keys=frozenset({"key", "vid_key", "video_id", "sentence"}),
    matches=_is_caption_row,
    convert=_convert_row,
)


# Several captions per record.


def _is_caption_list(record: object) -> bool:
    if not isinstance(record, dict) or _OTHER_FORMATS & record.keys() or _holds_video(record):
        return False
    return {"video", "caption"} <= record.keys()


def _convert_captions(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One candidate for each caption; raises `bad_schema` where the clip or the list can't be used."""
    source = fields.mapping(record, "the record")
    clip = clips.named(fields.required(source, "video", "the record"), "video")
    meta, repairs = media_bytes.rest(source, ("video", "caption"))
    captions = fields.required(source, "caption", "the record")
    for number, caption in enumerate(captions if isinstance(captions, list) else [captions]):
        if not isinstance(caption, str):
            yield fields.wrong(caption, f"caption[{number}]", "text")
        else:
            yield _caption(clip, caption, meta, repairs)


CAPTION_LISTS = Format(
    name="video-captions",
    title="Clips with a caption or a list of them, as MSVD",
    schema='{"video": PATH, "caption": TEXT | [TEXT]}',
    example={"video": "clips/dog.avi", "caption": ["a dog catches a ball", "a dog is playing"]},
    traps=("every caption is a record, equal ones too",),
    keys=frozenset({"video", "caption"}),
    matches=_is_caption_list,
    convert=_convert_captions,
)


# One question per record.


def _is_question(record: object) -> bool:
    if not isinstance(record, dict) or _OTHER_FORMATS & record.keys() or _holds_video(record):
        return False
    return {"question", "answer"} <= record.keys() and any(key in record for key in _VIDEO_KEYS)


def _convert_question(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one question of a record; raises `bad_schema`."""
    source = fields.mapping(record, "the record")
    question = fields.text(fields.required(source, "question", "the record"), "question")
    meta, repairs = media_bytes.rest(source, ("question", "answer", "video", "video_path"))
    clip = _clip_asked_about(source)
    yield clips.open_question(clip, question, source.get("answer"), meta=meta, repairs=repairs)


def _clip_asked_about(source: dict[str, Any]) -> MediaReference:
    for key in ("video", "video_path"):
        if source.get(key) is not None:
            return clips.named(source[key], key)
    value = fields.required(source, "video_id", "the record")
    name = clips.identifier(value, "video_id")
    # MSRVTT-QA and MSVD-QA give numbers alone for files called video7 and vid7.
    return clips.clip(f"video{name}", f"vid{name}", name) if isinstance(value, int) else clips.clip(name)


QUESTIONS = Format(
    name="video-qa",
    title="A question and its answer about a clip: MSRVTT-QA, MSVD-QA, open questions of MLVU",
    schema='{"video_id": ID | "video": PATH, "question": TEXT, "answer": TEXT, ...}',
    example={"video_id": "video7", "question": "what is the man riding?", "answer": "horse", "answer_type": "what"},
    traps=(
        "a video_id that is a number N means videoN, or vidN in MSVD-QA",
        "answers are single words without a capital; they are left so",
    ),
    keys=frozenset({"question", "answer", "answer_type", *_VIDEO_KEYS}),
    matches=_is_question,
    convert=_convert_question,
)

FORMATS = (DOCUMENT, CAPTION_ROWS, CAPTION_LISTS, QUESTIONS)
