"""Benchmarks that ask multiple-choice questions about videos: MVBench and MLVU, LVBench, Video-MME.

They write their answers as the text of an option, as its letter, or as both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import choices, fields, media_bytes
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.video import clips

_OPTION_LINE = re.compile(r"^\s*\(([A-Z])\)\s*(.*)$")


def _right(source: Mapping[str, Any], options: list[str]) -> int | None:
    answer = fields.optional_text(source, "answer")
    return choices.index_of(answer, options) if answer else None


# MVBench and MLVU.

_CANDIDATE_KEYS = ("candidates", "options")
_OTHER_BENCHMARKS = frozenset({"correct_choice", "subtitle_path", "videoID"})


def _is_mvbench(record: object) -> bool:
    if not isinstance(record, dict) or not _OTHER_BENCHMARKS.isdisjoint(record):
        return False
    return {"video", "question"} <= record.keys() and any(key in record for key in _CANDIDATE_KEYS)


def _convert_mvbench(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a record; raises `bad_schema`."""
    source = fields.mapping(record, "the record")
    question = fields.text(fields.required(source, "question", "the record"), "question")
    key = next((key for key in _CANDIDATE_KEYS if key in source), _CANDIDATE_KEYS[0])
    options = clips.options(fields.array(fields.required(source, key, "the record"), key), key)
    start, end = clips.span(source.get("start"), source.get("end"), "the clip")
    media = [clips.named(fields.required(source, "video", "the record"), "video", start=start, end=end)]
    used = ("video", "question", key, "answer", "start", "end")
    meta, repairs = media_bytes.rest({**source, **_in_seconds(source)}, used)
    yield clips.choice(media, question, options, _right(source, options), context, meta=meta, repairs=repairs)


MVBENCH = Format(
    name="mvbench",
    title="MVBench, MLVU and others with candidates",
    schema=(
        '{"video": PATH, "question": TEXT, "candidates" | "options": [TEXT], "answer": TEXT | LETTER,\n'
        ' "start": SECONDS, "end": SECONDS, "fps": N, ...}'
    ),
    example={
        "video": "clips/kitchen.mp4",
        "question": "What did the person do after opening the box?",
        "candidates": ["Closed it.", "Took a book.", "Sat down."],
        "answer": "Took a book.",
        "start": 1.5,
        "end": 17.1,
    },
    traps=(
        "start and end are seconds of the part that is shown",
        "the answer is the text of a candidate, its letter or '(D) text'; one that fits none or two is bad_schema",
        "subtitle stays metadata",
    ),
    keys=frozenset({"video", "question", "candidates", "answer", "start", "end", "duration", "question_type", "fps"}),
    matches=_is_mvbench,
    convert=_convert_mvbench,
)


# LVBench.


def _is_lvbench(record: object) -> bool:
    return isinstance(record, dict) and {"key", "qa"} <= record.keys()


def _convert_lvbench(record: object, context: Context = PLAIN) -> Iterator[Candidate]:
    """One candidate for each question about a video; raises `bad_schema`."""
    source = fields.mapping(record, "the record")
    name = clips.identifier(fields.required(source, "key", "the record"), "key")
    asked = fields.array(fields.required(source, "qa", "the record"), "qa")
    if not asked:
        raise RecordError("bad_schema", "qa is empty")
    for number, pair in enumerate(asked):
        try:
            yield _lvbench_question(source, name, fields.mapping(pair, f"qa[{number}]"), context)
        except RecordError as error:
            yield error


def _lvbench_question(source: Mapping[str, Any], name: str, pair: Mapping[str, Any], context: Context) -> Draft:
    question, options = _with_options(fields.text(fields.required(pair, "question", "the question"), "question"))
    meta, repairs = media_bytes.rest({**source, **pair, **_in_seconds(pair)}, ("qa", "question", "answer"))
    right = _right(pair, options)
    return clips.choice([clips.clip(name)], question, options, right, context, meta=meta, repairs=repairs)


def _in_seconds(pair: Mapping[str, Any]) -> dict[str, list[float]]:
    """The time reference in seconds; it is a hint only, so one that can't be read is left as it is."""
    written = pair.get("time_reference")
    if not isinstance(written, str):
        return {}
    try:
        return {"time_reference_seconds": [clips.clock(time, "time_reference") for time in written.split("-")]}
    except RecordError:
        return {}


def _with_options(text: str) -> tuple[str, list[str]]:
    """The question and the options `(A) ...` that stand in lines below it."""
    asked: list[str] = []
    options: list[str] = []
    for line in text.split("\n"):
        match = _OPTION_LINE.match(line)
        if match and ord(match[1]) == ord("A") + len(options):
            options.append(match[2])
        elif options:
            options[-1] += f"\n{line}"
        else:
            asked.append(line)
    if len(options) < 2:
        raise RecordError("bad_schema", "the question has no options (A), (B), ... in lines of their own")
    return "\n".join(asked), [option.strip() for option in options]


LVBENCH = Format(
    name="lvbench",
    title="LVBench, several questions about each long video",
    schema=(
        '{"key": ID, "qa": [{"uid": N, "question": "TEXT\\n(A) TEXT\\n(B) TEXT ...", "answer": LETTER,\n'
        '                    "question_type": [NAME], "time_reference": "MM:SS-MM:SS"}], "video_info": {...}}'
    ),
    example={
        "key": "abc123",
        "type": "sport",
        "qa": [
            {
                "uid": "1",
                "question": "Who wins the race?\n(A) the runner in red\n(B) the runner in blue",
                "answer": "B",
                "question_type": ["entity recognition"],
                "time_reference": "00:00-75:57",
            }
        ],
    },
    traps=(
        "the options stand in the text of the question",
        "the whole video is shown; time_reference, where the answer is seen, is metadata, also in seconds",
        "time_reference is mm:ss with minutes over 59, as in 75:57",
        "the clip is <key>.mp4",
    ),
    keys=frozenset({"key", "qa", "type", "video_info"}),
    matches=_is_lvbench,
    convert=_convert_lvbench,
)


# Video-MME.


def _is_video_mme(record: object) -> bool:
    return isinstance(record, dict) and {"videoID", "question", "options"} <= record.keys()


def _convert_video_mme(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a row; raises `bad_schema`."""
    source = fields.mapping(record, "the record")
    question = fields.text(fields.required(source, "question", "the record"), "question")
    options = clips.options(fields.array(fields.required(source, "options", "the record"), "options"), "options")
    name = clips.identifier(fields.required(source, "videoID", "the record"), "videoID")
    meta, repairs = media_bytes.rest(source, ("question", "options", "answer"))
    media = [clips.clip(name, f"data/{name}")]
    yield clips.choice(media, question, options, _right(source, options), context, meta=meta, repairs=repairs)


VIDEO_MME = Format(
    name="video-mme",
    title="Video-MME",
    schema=(
        '{"videoID": ID, "question": TEXT, "options": ["A. TEXT", ...], "answer": LETTER,\n'
        ' "video_id": ID, "question_id": ID, "duration": "short" | "medium" | "long", "domain": NAME, ...}'
    ),
    example={
        "video_id": "001",
        "videoID": "abc123",
        "question_id": "001-1",
        "duration": "short",
        "question": "Which fruit is cut first?",
        "options": ["A. Apple.", "B. Pear.", "C. Plum.", "D. Fig."],
        "answer": "C",
    },
    traps=(
        "the clip is <videoID>.mp4, not <video_id>.mp4",
        "the letters in front of the options are taken away and written anew",
        "duration is a class and not seconds; subtitles are not named by the rows and are not read",
    ),
    keys=frozenset(
        {"video_id", "videoID", "question_id", "duration", "domain", "url", "question", "options", "answer"}
    ),
    matches=_is_video_mme,
    convert=_convert_video_mme,
)

FORMATS = (MVBENCH, LVBENCH, VIDEO_MME)
