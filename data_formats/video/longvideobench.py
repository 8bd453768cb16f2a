"""LongVideoBench: multiple-choice questions about long videos, shown piece by piece with their subtitles.

`{"video_path", "subtitle_path", "question", "candidates", "correct_choice", "duration",
"starting_timestamp_for_subtitles"}`; tables have `option0` to `option4` in place of `candidates`. The subtitles are
a list of `{"timestamp": [start, end | null], "text"}` or of `{"start": "hh:mm:ss.x", "end", "line"}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes, strict_json
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.reading import subtitles
from aria_finetune.data_formats.reading.subtitles import Cue
from aria_finetune.data_formats.record import Draft, MediaReference
from aria_finetune.data_formats.video import clips

MAX_PIECES = 64
"""Into how many pieces a video is cut at most; of more cues several share a piece."""

FRAMES = 64
"""How many frames the pieces ask for together; each asks for one at least."""

SHORTEST_PIECE = 1.0
"""Seconds; cues that follow each other faster share a piece."""

_OPTIONS = tuple(f"option{number}" for number in range(5))
_NO_OPTION = (None, "", "N/A")
_OFFSET = "starting_timestamp_for_subtitles"
_USED = frozenset({"video_path", "question", "candidates", "correct_choice", *_OPTIONS})


def matches(record: object) -> bool:
    """`question`, `video_path` and `subtitle_path`, with `candidates` or `option0`."""
    if not isinstance(record, dict) or not {"question", "video_path", "subtitle_path"} <= record.keys():
        return False
    return "candidates" in record or "option0" in record


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a record.

    Raises:
        RecordError: `bad_schema`; `media_unreadable` where the subtitles are damaged, and what `beside` raises but
            `media_missing`.
    """
    source = fields.mapping(record, "the record")
    question = fields.text(fields.required(source, "question", "the record"), "question")
    right = clips.index(source.get("correct_choice"), "correct_choice")
    whole = clips.named(fields.required(source, "video_path", "the record"), "video_path")
    duration = None if source.get("duration") is None else clips.seconds(source["duration"], "duration")
    meta, repairs = media_bytes.rest(source, _USED)
    shown: list[MediaReference | str] = [whole]
    cues = _cues(source, context)
    if cues is None:
        repairs = (*repairs, "subtitles_missing")
    else:
        heard = _heard(cues, clips.seconds(source.get(_OFFSET) or 0, _OFFSET), duration)
        shown = interleaved(whole, heard, duration)
        repairs = (*repairs, "subtitles_outside_dropped") if len(heard) < len(cues) else repairs
    yield clips.choice(shown, question, _options(source), right, context, meta=meta, repairs=repairs)


def interleaved(whole: MediaReference, cues: Sequence[Cue], duration: float | None) -> list[MediaReference | str]:
    """The video cut at the middle of each cue, and the text of the cue behind the piece that leads up to it."""
    if not cues:
        return [whole]
    moments = sorted(((cue.start + cue.end) / 2, cue.text) for cue in cues)
    together = math.ceil(len(moments) / (MAX_PIECES - 1))
    cuts: list[float] = [0.0]
    said: list[list[str]] = []
    waiting: list[str] = []
    for middle, text in moments:
        waiting.append(text)
        if len(waiting) >= together and middle - cuts[-1] >= SHORTEST_PIECE:
            cuts.append(middle)
            said.append(waiting)
            waiting = []
    if said and duration is not None and duration - cuts[-1] < SHORTEST_PIECE:
        cuts.pop()
        said[-1] = [*said[-1], *waiting]
    else:
        said.append(waiting)
    return _pieces(whole, cuts, said)


def _pieces(whole: MediaReference, cuts: Sequence[float], said: Sequence[Sequence[str]]) -> list[MediaReference | str]:
    frames = max(1, FRAMES // len(cuts))
    pieces: list[MediaReference | str] = []
    for start, end, texts in zip(cuts, [*cuts[1:], None], said, strict=True):
        pieces.append(replace(whole, start=start, end=end, num_frames=frames))
        pieces.extend(f"{text}\n" for text in texts)
    return pieces


def _options(source: Mapping[str, Any]) -> list[str]:
    if source.get("candidates") is not None:
        return clips.options(fields.array(source["candidates"], "candidates"), "candidates")
    written = [source.get(key) for key in _OPTIONS]
    while written and written[-1] in _NO_OPTION:
        written.pop()
    return clips.options(written, "option")


def _heard(cues: Sequence[Cue], offset: float, duration: float | None) -> list[Cue]:
    """The cues of the video, whose first second is `offset` of the subtitles; those of a longer one are left out."""
    last = math.inf if duration is None else duration
    shifted = [Cue(max(cue.start - offset, 0.0), min(cue.end - offset, last), cue.text) for cue in cues]
    return [cue for cue in shifted if cue.start <= cue.end and cue.start < last]


def _cues(source: Mapping[str, Any], context: Context) -> list[Cue] | None:
    """What the subtitles say, timed as they stand in their file; None if there is no such file."""
    name = fields.optional_text(source, "subtitle_path")
    for place in (name, f"subtitles/{name}") if name else ():
        try:
            data = context.beside(place)
        except RecordError as error:
            if error.reason != "media_missing":
                raise
        else:
            return _read(data, place)
    return None


def _read(data: bytes, name: str) -> list[Cue]:
    try:
        if not name.lower().endswith(".json"):
            return list(subtitles.read(data).cues)
        listed = strict_json.loads(data.decode("utf-8-sig"))
    except (FormatError, UnicodeDecodeError, json.JSONDecodeError, strict_json.StrictJSONError) as error:
        raise RecordError("media_unreadable", f"the subtitles {name!r:.60}: {error}") from error
    lines = [fields.mapping(line, f"subtitles[{number}]") for number, line in enumerate(fields.array(listed, name))]
    starts = [_times(line, f"subtitles[{number}]")[0] for number, line in enumerate(lines)]
    cues = [
        _cue(line, f"subtitles[{number}]", starts[number + 1 : number + 2] or starts[number:])
        for number, line in enumerate(lines)
    ]
    return [cue for cue in cues if cue.text]


def _cue(line: Mapping[str, Any], where: str, following: Sequence[float]) -> Cue:
    """One line of either shape; one without an end lasts until the next."""
    start, end = _times(line, where)
    text = fields.text(fields.required(line, "text" if "text" in line else "line", where), where)
    return Cue(start, max(start, following[0]) if end is None else end, text.strip())


def _times(line: Mapping[str, Any], where: str) -> tuple[float, float | None]:
    times = [line.get("start"), line.get("end")]
    if "timestamp" in line:
        times = fields.array(line["timestamp"], where)
    if len(times) != 2:
        raise RecordError("bad_schema", f"{where} has {len(times)} times, not start and end")
    start, end = (None if time is None else _time(time, where) for time in times)
    if start is None:
        raise RecordError("bad_schema", f"{where} has no start")
    return start, end


def _time(value: object, where: str) -> float:
    return clips.clock(value, where) if isinstance(value, str) and ":" in value else clips.seconds(value, where)


FORMAT = Format(
    name="longvideobench",
    title="LongVideoBench, with its subtitles between pieces of the video",
    schema=(
        '{"video_path": PATH, "subtitle_path": PATH, "question": TEXT, "candidates": [TEXT], "correct_choice": N,\n'
        ' "duration": SECONDS, "starting_timestamp_for_subtitles": SECONDS, "id": ID, ...}\n'
        'or "option0": TEXT, ..., "option4": TEXT | "N/A" in place of "candidates"'
    ),
    example={
        "video_path": "abc123.mp4",
        "subtitle_path": "abc123_en.json",
        "question": "What is on the table when the man says goodbye?",
        "candidates": ["a lamp", "a cup", "a book"],
        "correct_choice": 1,
        "duration": 190.16,
        "starting_timestamp_for_subtitles": 0,
        "id": "abc123_0",
    },
    traps=(
        "correct_choice is counted from 0; missing or -1, as in the test split, it is only for evaluation",
        "the subtitles are <subtitle_path>, also in subtitles/; without them the video is whole (subtitles_missing)",
        "with them the video is cut at the middle of each cue, whose text comes between the pieces",
        f"there are at most {MAX_PIECES} pieces of at least {SHORTEST_PIECE:g} s; cues share a piece where there are more",
        f"the pieces ask for {FRAMES} frames together, one each at least",
        "starting_timestamp_for_subtitles is subtracted, as the video may be part of a longer one",
        "cues before its start and behind its end are left out (subtitles_outside_dropped)",
        "a cue without an end lasts until the next one",
    ),
    keys=frozenset({*_USED, "subtitle_path", "duration", "video_id", "id", _OFFSET}),
    matches=matches,
    convert=convert,
)
