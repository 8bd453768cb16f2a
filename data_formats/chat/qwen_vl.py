r"""Qwen-VL's first form of conversations, in which the name of an image stands in the text itself.

`{"id", "conversations": [{"from": "user" | "assistant", "value": "Picture 1: <img>path</img>\n..."}]}`
The image goes where its tags were; the label before it and all other text stay. Boxes stay text as well: they
count from 0 to 999 of the width and the height, as Aria's own do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_fields
from aria_finetune.data_formats.building.turns import Piece, Turn, draft, role
from aria_finetune.data_formats.chat import llava
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, Role

_KNOWN_KEYS = ("conversations", "tools", *chat_fields.SYSTEM_KEYS)
_TURN_KEYS = ("from", "value", *chat_fields.TRAIN_KEYS)
_IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)
_IMAGE_TAG = re.compile(r"</?img>")
_AUDIO = re.compile(r"<audio>.*?</audio>", re.DOTALL)
_ASKING = ("user", "human")
_COORDINATES = "(x1,y1),(x2,y2) from 0 to 999 of the width and height"


def matches(record: object) -> bool:
    """As LLaVA's conversations, with no media beside them."""
    return isinstance(record, dict) and not _columns(record) and llava.matches(record)


def marks(record: object) -> bool:
    """A turn of the user with a name between `<img>` and `</img>`."""
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        return False
    turns = [turn for turn in record["conversations"] if isinstance(turn, dict) and turn.get("from") in _ASKING]
    return any(isinstance(turn.get("value"), str) and _IMAGE.search(turn["value"]) for turn in turns)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality` for an audio, or `placeholder_mismatch` where
            a tag of an image has no partner.
    """
    source = fields.mapping(record, "the record")
    if columns := _columns(source):
        raise RecordError("bad_schema", f"{columns[0]!r} names media beside the text, which is llava's way")
    written = fields.array(fields.required(source, "conversations", "the record"), "conversations")
    turns = [_turn(turn, f"conversations[{number}]") for number, turn in enumerate(written)]
    meta = fields.rest(source, _KNOWN_KEYS) | chat_fields.meta_of_turns(written, _TURN_KEYS, "conversations")
    meta, dropped = media_fields.without_bytes(meta)
    if any(isinstance(piece, str) and "<box>" in piece for turn in turns for piece in turn.pieces):
        meta = {"coordinates": _COORDINATES} | meta
    answers = [piece for turn in turns if turn.role == "assistant" for piece in turn.pieces]
    kept = any(isinstance(piece, str) and _IMAGE_TAG.search(piece) for piece in answers)
    repairs = ("placeholder_kept_as_text", *dropped) if kept else dropped
    yield draft([*chat_fields.system_turn(source), *turns], tools=chat_fields.tools(source), meta=meta, repairs=repairs)


def _columns(record: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted(media_fields.MEDIA_KEYS) if record.get(key) is not None]


def _turn(value: object, where: str) -> Turn:
    turn = fields.mapping(value, where)
    speaker = role(turn.get("from"), where)
    text = fields.turn_text(turn, "value", speaker, where)
    return Turn(speaker, tuple(_pieces(text, speaker, where)), chat_fields.train_flag(turn, where))


def _pieces(text: str, speaker: Role, where: str) -> Iterator[Piece]:
    """The text and the images of a turn; an answer shows no image, so tags in it are what they seem."""
    if speaker == "assistant":
        yield text
        return
    if _AUDIO.search(text):
        raise RecordError("unsupported_modality", f"{where} has an <audio>: Aria does not hear")
    # Splitting at a pattern with one group gives text and names in turn.
    for number, fragment in enumerate(_IMAGE.split(text)):
        if number % 2:
            yield MediaReference("image", media_fields.reference(fragment, f"{where}: the name in <img></img>"))
        elif _IMAGE_TAG.search(fragment):
            raise RecordError("placeholder_mismatch", f"{where} has an <img> or </img> without the other")
        else:
            yield fragment


FORMAT = Format(
    name="qwen-vl",
    title="Qwen-VL (the first) and Qwen-VL-Chat: names of images inside the text",
    schema=(
        '{"conversations": [{"from": "user" | "assistant", "value": "Picture 1: <img>PATH</img>\\nTEXT"}]}\n'
        "boxes in the text: <ref>NAME</ref><box>(x1,y1),(x2,y2)</box>"
    ),
    example={
        "id": "identity_7",
        "conversations": [
            {"from": "user", "value": "Picture 1: <img>images/pier.jpg</img>\nWhere is the boat?"},
            {"from": "assistant", "value": "<ref>The boat</ref><box>(120,388),(471,702)</box>"},
        ],
    },
    traps=(
        "the label before an image ('Picture 1: ') and the line break behind it stay in the text",
        "boxes stay text and are not converted; here they run from 0 to 999, which is also Aria's own scale",
        "Qwen2-VL has boxes from 0 to 1000, Qwen2.5-VL in pixels of the resized image; both write llava records",
        "an <img> without </img> is placeholder_mismatch; tags in an answer are text (placeholder_kept_as_text)",
        "<audio>, as Qwen-Audio writes it, is unsupported_modality",
        "records without any image are read as llava, with the same result",
    ),
    keys=frozenset({"id", "conversations"}),
    matches=matches,
    convert=convert,
    narrower_than=("llava",),
    marks=marks,
)
