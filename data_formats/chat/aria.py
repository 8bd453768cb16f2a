"""Aria's own format: JSON Lines in which parts mark the places of `images` and of one `video`.

`{"messages": [{"role", "content": [{"type", "text"}]}], "images": [path] | null, "video": {path, num_frames} | null}`
Image parts take `images` in order. In the authors' files for evaluation the last turn asks, and the answer stands beside it:
`gt`, or for RefCOCO `bbox` ([x1, y1, x2, y2] in pixels) and `hw` (rhymes-ai/Aria, examples/*/evaluation.py). Beyond the original loader a system turn is allowed, and a record may hold
images and a video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, placeholders, preference_keys
from aria_finetune.data_formats.building.turns import Piece, Slot, Turn, draft, role
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, Role

_PART_KEYS = {"type", "text"}
_KNOWN_KEYS = ("messages", "images", "video")
_SCALE = 999
_LARGEST_PIXEL = 10**9
_TURN_KEYS = ("role", "content", *chat_fields.TRAIN_KEYS)
_VIDEO_KEYS = (*media_fields.OBJECT_KEYS, "num_frames")


def matches(record: object) -> bool:
    """Every part of every turn has `type` and `text` at most, and `video` is an object if it is there."""
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list) or "videos" in record:
        return False
    if preference_keys.is_preference(record):
        return False
    if not isinstance(record.get("video"), dict | None) or not isinstance(record.get("images"), list | None):
        return False
    contents = [message.get("content") for message in record["messages"] if isinstance(message, dict)]
    return all(isinstance(content, list) and all(map(_is_part, content)) for content in contents)


def marks(record: object) -> bool:
    """A `video` object, or an image part without a reference: what the wider chat format does not write."""
    if not isinstance(record, dict) or not matches(record):
        return False
    parts = [part for message in record["messages"] if isinstance(message, dict) for part in message["content"]]
    return isinstance(record.get("video"), dict) or any(part.get("type") == "image" for part in parts)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `placeholder_mismatch` where parts and
            media differ in number.
    """
    source = fields.mapping(record, "the record")
    messages = fields.array(fields.required(source, "messages", "the record"), "messages")
    turns = [_turn(message, f"messages[{number}]") for number, message in enumerate(messages)]
    turns, _ = placeholders.fill(turns, media_fields.images(source), _videos(source), add_missing=False)
    accepted = _answers(source) if turns and turns[-1].role == "user" else []
    if accepted:
        turns = [*turns, Turn("assistant", (accepted[0],))]
    known = (*_KNOWN_KEYS, "gt") if accepted else _KNOWN_KEYS
    meta = fields.rest(source, known) | _rest_of_media(source) | (_options(source) if accepted else {})
    meta, dropped = media_fields.without_bytes(meta | chat_fields.meta_of_turns(messages, _TURN_KEYS, "messages"))
    yield draft(turns, references=accepted, meta=meta, repairs=dropped)


def _answers(source: dict[str, Any]) -> list[str]:
    """What stands beside a question that has no reply: the answers that are right."""
    if source.get("gt") is not None:
        given = source["gt"] if isinstance(source["gt"], list) else [source["gt"]]
        return [fields.text(answer, "gt") for answer in given]
    if source.get("bbox") is None or source.get("hw") is None:
        return []
    height, width = _pixels(source["hw"], "hw", 2)
    sides = (width, height, width, height)
    if not (height and width):
        raise RecordError("bad_schema", "hw is 0")
    x1, y1, x2, y2 = (
        round(min(max(pixel / side, 0), 1) * _SCALE)
        for pixel, side in zip(_pixels(source["bbox"], "bbox", 4), sides, strict=True)
    )
    return [f"({x1},{y1}),({x2},{y2})"]


def _options(source: dict[str, Any]) -> dict[str, list[str]]:
    """The options of a multiple-choice question, in the order of their letters."""
    letters, texts = source.get("all_choices"), source.get("index2ans")
    if not isinstance(letters, list) or not isinstance(texts, dict) or not letters:
        return {}
    found = [texts.get(letter) for letter in letters if isinstance(letter, str)]
    options = [text for text in found if isinstance(text, str)]
    return {"options": options} if len(options) == len(letters) else {}


def _pixels(value: object, where: str, count: int) -> list[float]:
    numbers = fields.array(value, where)
    if len(numbers) != count or not all(_is_pixel(number) for number in numbers):
        raise RecordError("bad_schema", f"{where} is not {count} numbers of pixels")
    return numbers


def _is_pixel(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_PIXEL


def _rest_of_media(source: dict[str, Any]) -> dict[str, Any]:
    extra = media_fields.rest({"images": source.get("images")})
    video = fields.rest(source["video"], _VIDEO_KEYS) if source.get("video") else {}
    return extra | ({"video": video} if video else {})


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and part.keys() <= _PART_KEYS


def _turn(message: object, where: str) -> Turn:
    turn = fields.mapping(message, where)
    content = fields.array(fields.required(turn, "content", where), f"{where}.content")
    speaker = role(turn.get("role"), where)
    pieces = [_piece(part, speaker, f"{where}.content[{number}]") for number, part in enumerate(content)]
    return Turn(speaker, tuple(pieces), chat_fields.train_flag(turn, where))


def _piece(value: object, speaker: Role, where: str) -> Piece:
    part = fields.mapping(value, where)
    match part.get("type"):
        case "text":
            return fields.turn_text(part, "text", speaker, where)
        case ("image" | "video") as kind:
            if part.get("text"):
                raise RecordError("bad_schema", f"{where} is of type {kind} and has text")
            return Slot(kind)
        case kind:
            raise RecordError("unsupported_modality", f"{where} is of type {kind!r:.60}")


def _videos(record: dict[str, Any]) -> list[MediaReference]:
    if record.get("video") is None:
        return []
    video = fields.mapping(record["video"], "video")
    frames = video.get("num_frames")
    if frames is not None and (not isinstance(frames, int) or isinstance(frames, bool)):
        raise fields.wrong(frames, "video.num_frames", "a whole number")
    # The original loader reads null, 0 and below as "the default number".
    wanted = frames if frames and frames > 0 else None
    return [replace(media_fields.medium("video", video, "video"), num_frames=wanted)]


FORMAT = Format(
    name="aria",
    title="Aria's own JSON Lines",
    schema=(
        '{"messages": [{"role": "user" | "assistant" | "system",\n'
        '               "content": [{"type": "text" | "image" | "video", "text": TEXT | null}]}],\n'
        ' "images": [PATH] | null, "video": {"path": PATH, "num_frames": COUNT} | null}'
    ),
    example={
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is on the table?"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A cup and two books."}]},
        ],
        "images": ["images/table.jpg"],
        "video": None,
    },
    traps=(
        "image parts take the entries of images in order; another number of them is placeholder_mismatch",
        "video is one object, not a list; num_frames of 0 or null leaves the number to the recipe",
        "in the authors' val.jsonl the answer to the last turn is gt, or bbox in pixels, made (x1,y1),(x2,y2) of 0 to 999",
        "a file of text records alone looks like messages as well and is read as that, with the same result",
    ),
    keys=frozenset({*_KNOWN_KEYS, "gt", "bbox", "hw"}),
    matches=matches,
    convert=convert,
    narrower_than=("messages",),
    marks=marks,
)
