"""TGIF-QA: tables of questions about animated GIFs; repeated actions and transitions have five choices.

`gif_name, question, a1 .. a5, answer, vid_id, key`, the answer counted from 0. Without `a1` (repetition count and
frame questions) `answer` is the answer itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference
from aria_finetune.data_formats.video import clips

_OPTIONS = ("a1", "a2", "a3", "a4", "a5")
_FOLDER = "gifs/"


def matches(record: object) -> bool:
    """`gif_name` and `question`."""
    return isinstance(record, dict) and {"gif_name", "question"} <= record.keys()


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a row.

    Raises:
        RecordError: `bad_schema`.
    """
    row = fields.mapping(record, "the record")
    question = fields.text(fields.required(row, "question", "the record"), "question")
    clip = _clip(clips.identifier(fields.required(row, "gif_name", "the record"), "gif_name"))
    meta, repairs = media_bytes.rest(row, ("question", "answer", *_OPTIONS))
    if "a1" in row:
        options = clips.options((row[key] for key in _OPTIONS if key in row), "a")
        right = clips.index(row.get("answer"), "answer")
        yield clips.choice([clip], question, options, right, context, meta=meta, repairs=repairs)
        return
    yield clips.open_question(clip, question, row.get("answer"), meta=meta, repairs=repairs)


def _clip(name: str) -> MediaReference:
    return clips.clip(name, _FOLDER + name, endings=(".gif", *clips.ENDINGS))


FORMAT = Format(
    name="tgif-qa",
    title="TGIF-QA tables: repeated action, transition, count and frame questions",
    schema=(
        "gif_name  question  a1  a2  a3  a4  a5  answer  vid_id  key     with answer 0 to 4, or\n"
        "gif_name  question  answer  vid_id  key   and maybe type, description"
    ),
    example={
        "gif_name": "tumblr_abc_250",
        "question": "What does the cat do 3 times ?",
        "a1": "jump",
        "a2": "blink",
        "a3": "shake head",
        "a4": "roll over",
        "a5": "walk",
        "answer": "2",
        "vid_id": "ACTION1",
        "key": "17",
    },
    traps=(
        "the files end in .csv and are separated by tabs",
        "with a1 to a5 the answer is the number of one of them, counted from 0; without them it is the answer",
        "a clip is <gif_name>.gif, also in gifs/, and is read as a video",
        "description is the sentence a frame question was made from; it stays metadata",
    ),
    keys=frozenset({"gif_name", "question", "answer", "vid_id", "key", "type", "description", *_OPTIONS}),
    matches=matches,
    convert=convert,
)
