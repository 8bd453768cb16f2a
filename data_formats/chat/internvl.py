"""InternVL: LLaVA's conversations with the sizes of their images, and the file that lists sets of them.

A record is a LLaVA conversation with `width` and `height`, or `width_list` and `height_list`, and maybe a `clip` of
its video in seconds. Boxes stay text; they run from 0 to 1000 of the width and the height.

The meta file `{name: {"root", "annotation", "repeat_time", ...}}` holds no record. `annotations` reads it, for
whoever opens the JSON Lines it names with `root` for their media.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.chat import llava
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_MARKS = ("width", "height", "width_list", "height_list", "clip")
_SET_KEYS = ("root", "annotation", "repeat_time", "length")
_BOX = re.compile(r"<box>\s*\[\[")
_COORDINATES = "[[x1, y1, x2, y2]] from 0 to 1000 of the width and height"


@dataclass(frozen=True, slots=True)
class InternVLSet:
    """One entry of a meta file: the records in `annotation`, whose media lie below `root`.

    Training takes a part of the records if `repeat_time` is below 1, and all of them that often if above. `length`
    is how many records there were when the entry was written. `other` are settings of InternVL's own training.
    """

    name: str
    root: str
    annotation: str
    repeat_time: float = 1
    length: int | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


def is_meta(document: object) -> bool:
    """Whether a JSON document lists sets: an object whose values all have a `root` and an `annotation`."""
    if not isinstance(document, dict) or not document:
        return False
    return all(isinstance(entry, dict) and {"root", "annotation"} <= entry.keys() for entry in document.values())


def annotations(document: object) -> list[InternVLSet]:
    """The sets of a meta file in their order.

    Raises:
        FormatError: it is no meta file, or an entry can't be used.
    """
    if not isinstance(document, dict) or not is_meta(document):
        raise FormatError(
            "it lists no InternVL sets", fix='write {"name": {"root": FOLDER, "annotation": FILE, "repeat_time": 1}}'
        )
    return [_set(name, entry) for name, entry in document.items()]


def matches(record: object) -> bool:
    """As LLaVA's conversations, one to a record."""
    return isinstance(record, dict) and llava.matches(record)


def marks(record: object) -> bool:
    """Sizes of images, or a clip."""
    return isinstance(record, dict) and any(key in record for key in _MARKS)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: as `llava`, and `bad_schema` where `clip` is not two times of one video.
    """
    source = fields.mapping(record, "the record")
    conversation = llava.conversation(_as_llava(source), "the record")
    texts = (part.text for message in conversation.messages for part in message.content if part.text is not None)
    meta = dict(conversation.meta)
    if any(map(_BOX.search, texts)):
        meta = {"coordinates": _COORDINATES} | meta
    yield replace(conversation, media=_clipped(conversation.media, source.get("clip")), meta=meta)


def _as_llava(source: Mapping[str, Any]) -> dict[str, Any]:
    """Without the clip and without media that are empty, which is how text is written here."""
    known = fields.rest(source, ("clip",))
    for key in ("image", "video"):
        if known.get(key) in ("", []):
            del known[key]
    turns = known.get("conversations")
    if isinstance(turns, list):
        known["conversations"] = [_turn(turn) for turn in turns]
    return known


def _turn(turn: object) -> object:
    """The turn with its `value`, which the documentation calls `text` where it is an answer."""
    if not isinstance(turn, dict) or "value" in turn or "text" not in turn:
        return turn
    return {"value": turn["text"], **fields.rest(turn, ("text",))}


def _clipped(media: Sequence[MediaReference], clip: object) -> tuple[MediaReference, ...]:
    if clip is None:
        return tuple(media)
    if sum(medium.kind == "video" for medium in media) != 1:
        raise RecordError("bad_schema", "clip is a part of a video, and there is not one video")
    start, end = _times(clip)
    return tuple(replace(medium, start=start, end=end) if medium.kind == "video" else medium for medium in media)


def _times(clip: object) -> tuple[float, float]:
    times = [float(time) for time in fields.array(clip, "clip") if _is_number(time)]
    if len(times) != 2 or len(fields.array(clip, "clip")) != 2 or not 0 <= times[0] < times[1]:
        raise RecordError("bad_schema", f"clip is {clip!r:.60}, not its start and end in seconds")
    return times[0], times[1]


def _set(name: str, entry: Mapping[str, Any]) -> InternVLSet:
    repeat_time, length = entry.get("repeat_time", 1), entry.get("length")
    for key in ("root", "annotation"):
        if not isinstance(entry[key], str) or not entry[key]:
            raise FormatError(f"the set {name!r:.60} has no name of a file or folder in {key!r}", fix="write it there")
    if not _is_number(repeat_time) or repeat_time <= 0:
        raise FormatError(f"the set {name!r:.60} has a repeat_time of {repeat_time!r:.60}", fix="give a number above 0")
    return InternVLSet(
        name=name,
        root=entry["root"],
        annotation=entry["annotation"],
        repeat_time=repeat_time,
        length=length if isinstance(length, int) and not isinstance(length, bool) else None,
        other=fields.rest(entry, _SET_KEYS),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FORMAT = Format(
    name="internvl",
    title="InternVL fine-tuning: LLaVA conversations with sizes of images and clips of videos",
    schema=(
        '{"id": ID, "image": PATH | [PATH], "width": PIXELS, "height": PIXELS,\n'
        ' "width_list": [PIXELS], "height_list": [PIXELS], "video": PATH, "clip": [START, END],\n'
        ' "conversations": [{"from": "human" | "gpt" | "system", "value": TEXT}]}\n'
        'and a meta file: {NAME: {"root": FOLDER, "annotation": FILE, "repeat_time": NUMBER, "length": COUNT}}'
    ),
    example={
        "id": 0,
        "image": ["images/left.jpg", "images/right.jpg"],
        "width_list": [640, 480],
        "height_list": [480, 640],
        "conversations": [
            {"from": "human", "value": "Image-1: <image>\nImage-2: <image>\nWhere is the lamp?"},
            {"from": "gpt", "value": "On the left of the first: <ref>the lamp</ref><box>[[41, 208, 190, 655]]</box>"},
        ],
    },
    traps=(
        "boxes stay text and are not converted: 0 to 1000 of the width and height, said as coordinates in meta",
        "clip is in seconds and belongs to the one video of its record",
        "an empty image is none; no placeholder at all: the media go before the first user text (placeholder_added)",
        "a <image> without an image is placeholder_mismatch; InternVL's own loader takes it out of the text",
        "in the meta file, repeat_time below 1 takes a part of a set and above 1 repeats it; length may be out of date",
        "records with neither sizes nor clips are read as llava, with the same result",
    ),
    keys=frozenset({"id", *llava.FORMAT.keys, *_MARKS}),
    matches=matches,
    convert=convert,
    narrower_than=("llava",),
    marks=marks,
)
