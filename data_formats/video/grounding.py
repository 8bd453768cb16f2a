"""Moments in videos: sentences and the seconds in which what they say happens.

Lines of Charades-STA (`id start end##sentence`), objects with `timestamp: [start, end]`, also as the `annotations`
of TimeChat's evaluation files, and QVHighlights with several `relevant_windows`. The answer tells the seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference
from aria_finetune.data_formats.video import clips

_LINE = re.compile(r"\s*(\S+)\s+(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s*##(.*)", re.DOTALL)
_SENTENCE_KEYS = ("caption", "sentence", "query", "description", "phrase")
_CLIP_KEYS = ("video", "video_path", "image_id", "video_id", "vid")

Window = tuple[float, float]


def prompt(sentence: str) -> str:
    """What is asked about a sentence."""
    return f"When does this happen in the video? {sentence}\nGive the start and the end in seconds."


def answer(windows: Sequence[Window]) -> str:
    """The windows in words: `From 24.3 to 30.4 seconds.`, joined by `and`."""
    spans = " and ".join(f"from {_number(start)} to {_number(end)} seconds" for start, end in windows)
    return f"{spans[:1].upper()}{spans[1:]}."


def _draft(
    clip: MediaReference,
    sentence: str,
    windows: Sequence[Window] | None,
    meta: Mapping[str, Any],
    repairs: tuple[str, ...] = (),
) -> Draft:
    if not windows:
        return questions.asked([clip], prompt(sentence), None, meta=meta, repairs=repairs)
    told = answer(windows)
    meta = {**meta, "windows": [list(window) for window in windows], "windows_unit": "seconds"}
    return questions.asked([clip], prompt(sentence), told, references=(told,), meta=meta, repairs=repairs)


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _window(value: object, where: str) -> Window:
    times = fields.array(value, where)
    if len(times) != 2:
        raise RecordError("bad_schema", f"{where} has {len(times)} values, not start and end")
    start, end = clips.span(times[0], times[1], where)
    if start is None or end is None:
        raise RecordError("bad_schema", f"{where} lacks its start or end")
    return start, end


# Charades-STA.


def _is_line(record: object) -> bool:
    return isinstance(record, str) and _LINE.fullmatch(record) is not None


def _convert_line(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The sentence of a line; raises `bad_schema`."""
    match = _LINE.fullmatch(fields.text(record, "the line"))
    if match is None:
        raise RecordError("bad_schema", "the line is not `id start end##sentence`")
    window = _window([match[2], match[3]], "the moment")
    yield _draft(clips.clip(match[1]), match[4].strip(), [window], {"video_id": match[1]})


CHARADES = Format(
    name="charades-sta",
    title="Charades-STA, lines of moments and sentences",
    schema="ID START END##SENTENCE",
    example="AB1CD 24.3 30.4##a person turns on the light.",
    traps=(
        "the clip is <ID>.mp4",
        "a moment that ends before it begins, of which there are some, is bad_schema",
    ),
    keys=frozenset(),
    matches=_is_line,
    convert=_convert_line,
)


# Objects with a timestamp.


def _is_timestamped(record: object) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("timestamp"), list):
        return False
    return any(key in record for key in _CLIP_KEYS) and any(key in record for key in _SENTENCE_KEYS)


def _convert_timestamped(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The sentence of an object; raises `bad_schema`."""
    source = fields.mapping(record, "the record")
    sentences = [key for key in _SENTENCE_KEYS if source.get(key) is not None]
    names = [key for key in _CLIP_KEYS if source.get(key) is not None]
    if not sentences or not names:
        raise RecordError("bad_schema", "the record has no sentence or no video")
    sentence = fields.text(source[sentences[0]], sentences[0])
    media = _named(source[names[0]], names[0])
    window = _window(fields.required(source, "timestamp", "the record"), "timestamp")
    meta, repairs = media_bytes.rest(source, (sentences[0], "timestamp", "video", "video_path"))
    yield _draft(media, sentence.strip(), [window], meta, repairs)


def _named(value: object, key: str) -> MediaReference:
    return clips.clip(clips.identifier(value, key)) if isinstance(value, int) else clips.named(value, key)


TIMESTAMPS = Format(
    name="video-moments",
    title="Sentences with a timestamp",
    schema=(
        '{"video" | "image_id" | "video_id": NAME, "caption" | "sentence" | "query": TEXT, "timestamp": [START, END]}'
    ),
    example={"video": "AB1CD.mp4", "caption": "a person turns on the light.", "timestamp": [24.3, 30.4]},
    traps=("times are seconds from the start of the clip",),
    keys=frozenset({"timestamp", "duration", *_SENTENCE_KEYS, *_CLIP_KEYS}),
    matches=_is_timestamped,
    convert=_convert_timestamped,
)


# The evaluation files of TimeChat.


def _is_timechat(record: object) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("annotations"), list):
        return False
    return any(_is_timestamped(annotation) for annotation in record["annotations"][:1])


def _annotations(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """The annotations of a document, one record each."""
    for record in records:
        try:
            yield from [record] if isinstance(record, RecordError) else _listed(record)
        except RecordError as error:
            yield error


def _listed(record: object) -> list[object]:
    document = fields.mapping(record, "the document")
    return fields.array(fields.required(document, "annotations", "the document"), "annotations")


TIMECHAT = Format(
    name="timechat",
    title="TimeChat's evaluation files, sentences with a timestamp in one document",
    schema='{"annotations": [{"image_id": NAME, "caption": TEXT, "timestamp": [START, END], "id": N}]}',
    example={
        "annotations": [
            {"image_id": "AB1CD.mp4", "caption": "a person turns on the light.", "timestamp": [24.3, 30.4], "id": 0}
        ]
    },
    traps=(
        "image_id names a video",
        "TimeChat's training data (QA) is read as videochat2; its <time_token_N> are relative and stay text",
    ),
    keys=frozenset({"annotations"}),
    matches=_is_timechat,
    convert=_convert_timestamped,
    unfold=_annotations,
)


# QVHighlights.


def _is_highlight(record: object) -> bool:
    return isinstance(record, dict) and {"qid", "query", "vid"} <= record.keys()


def _convert_highlight(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The query of a record; raises `bad_schema`."""
    source = fields.mapping(record, "the record")
    query = fields.text(fields.required(source, "query", "the record"), "query")
    name = clips.identifier(fields.required(source, "vid", "the record"), "vid")
    given = source.get("relevant_windows")
    listed = [] if given is None else fields.array(given, "relevant_windows")
    windows = [_window(window, f"relevant_windows[{number}]") for number, window in enumerate(listed)]
    meta, repairs = media_bytes.rest(source, ("query", "relevant_windows"))
    yield _draft(clips.clip(name, f"v_{name}"), query.strip(), windows, meta, repairs)


QVHIGHLIGHTS = Format(
    name="qvhighlights",
    title="QVHighlights, queries with one or several windows",
    schema=(
        '{"qid": N, "query": TEXT, "vid": "YOUTUBE_START_END", "duration": SECONDS,\n'
        ' "relevant_windows": [[START, END]], "relevant_clip_ids": [N], "saliency_scores": [[N, N, N]]}'
    ),
    example={
        "qid": 1,
        "query": "A family plays basketball outside.",
        "duration": 150,
        "vid": "abc123_60.0_210.0",
        "relevant_windows": [[0, 16], [30, 42]],
    },
    traps=(
        "the clip <vid>.mp4 is cut already: windows count from its start, the times in its name are YouTube's",
        "the test split has no windows: such records are only for evaluation",
    ),
    keys=frozenset({"qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores"}),
    matches=_is_highlight,
    convert=_convert_highlight,
)

FORMATS = (CHARADES, TIMESTAMPS, TIMECHAT, QVHIGHLIGHTS)
