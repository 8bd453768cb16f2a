"""TVQA: questions about clips of television shows, with five choices and the part of the clip they are about.

`{"q", "a0" .. "a4", "answer_idx", "ts": "48.62-60.02", "vid_name", "qid", "show_name"}`, one per line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.video import clips

_OPTIONS = ("a0", "a1", "a2", "a3", "a4")
_SPAN = re.compile(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*")


def matches(record: object) -> bool:
    """`q`, `vid_name` and `a0`."""
    return isinstance(record, dict) and {"q", "vid_name", "a0"} <= record.keys()


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a record.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    question = fields.text(fields.required(source, "q", "the record"), "q")
    name = clips.identifier(fields.required(source, "vid_name", "the record"), "vid_name")
    options = clips.options((fields.required(source, key, "the record") for key in _OPTIONS), "a")
    start, end = _span(source.get("ts"))
    right = clips.index(source.get("answer_idx"), "answer_idx")
    meta, repairs = media_bytes.rest(source, ("q", "answer_idx", *_OPTIONS))
    media = [clips.clip(name, start=start, end=end)]
    yield clips.choice(media, question, options, right, context, meta=meta, repairs=repairs)


def _span(value: object) -> tuple[float | None, float | None]:
    """The part of the clip that the question is about; the whole clip where it is written as `nan-nan`."""
    if isinstance(value, list) and len(value) == 2:
        return clips.span(value[0], value[1], "ts")
    if value is None or not (written := fields.text(value, "ts").strip()) or "nan" in written.lower():
        return None, None
    times = _SPAN.fullmatch(written)
    if times is None:
        raise RecordError("bad_schema", f"ts is {value!r:.40}, not two times in seconds")
    return clips.span(times[1], times[2], "ts")


FORMAT = Format(
    name="tvqa",
    title="TVQA questions about television clips",
    schema=(
        '{"q": TEXT, "a0": TEXT, ..., "a4": TEXT, "answer_idx": 0 to 4, "ts": "START-END",\n'
        ' "vid_name": ID, "qid": N, "show_name": TEXT}'
    ),
    example={
        "q": "Where is the cup when she leaves the room?",
        "a0": "on the table",
        "a1": "on the floor",
        "a2": "in her hand",
        "a3": "in the sink",
        "a4": "on the shelf",
        "answer_idx": 0,
        "ts": "48.62-60.02",
        "vid_name": "show_s01e01_seg01_clip_00",
        "qid": 1,
        "show_name": "A show",
    },
    traps=(
        "ts is the part of the clip in seconds that is shown; nan-nan, as in the test split, is the whole clip",
        "answer_idx is missing in the test split: such records are only for evaluation",
        "subtitles are not named by the records and are not read",
    ),
    keys=frozenset({"q", "answer_idx", "ts", "vid_name", "qid", "show_name", *_OPTIONS}),
    matches=matches,
    convert=convert,
)
