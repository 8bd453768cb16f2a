"""The parts of a chat message, in the spellings of OpenAI, Hugging Face, LLaMA-Factory and xtuner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields, media_fields
from aria_finetune.data_formats.building.turns import Piece, Slot
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import MediaReference, PartType

_KIND_OF_TYPE: dict[str, PartType] = {
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}
_NAMING_KEYS = (*_KIND_OF_TYPE, "path", "url", "value")
_PART_KEYS = frozenset({"type", "text", "base64", *_NAMING_KEYS})
XTUNER_PLACEHOLDERS: dict[str, PartType] = {"<IMG_CONTEXT>": "image", "<VIDEO_CONTEXT>": "video"}
"""xtuner lists the media of a message first and marks their places with these."""
CALL_KEYS = ("tool_calls", "function_call")
"""The keys of a message that hold calls of tools; the second is OpenAI's older one."""


def piece(value: object, where: str) -> Piece:
    """The text, medium or empty place that one part of a `content` list stands for.

    Raises:
        RecordError: `bad_schema`, `unsupported_modality` for a type that is neither text, image nor video, or
            `placeholder_mismatch` for text with the placeholders of xtuner, which has its own format.
    """
    part = fields.mapping(value, where)
    kind = part.get("type")
    if kind == "text":
        return _text_without_placeholders(part, where)
    if isinstance(kind, str) and kind in _KIND_OF_TYPE:
        return _medium(part, kind, where)
    if "type" not in part:
        raise RecordError("bad_schema", f"{where} has no 'type'")
    raise RecordError("unsupported_modality", f"{where} is of type {kind!r:.60}")


def text(part: dict[str, Any], where: str) -> str:
    """The text of a part of type `text`, which LLaMA-Factory calls its `value`."""
    key = "value" if part.get("value") is not None else "text"
    return fields.text(fields.required(part, key, where), f"{where}.{key}")


def calls(message: Mapping[str, Any]) -> Iterator[str]:
    """The calls of tools of a message as JSON text on lines of their own."""
    given = [message[key] for key in CALL_KEYS if message.get(key)]
    for number, call in enumerate(given):
        yield "\n" if message.get("content") or number else ""
        yield fields.json_text(call)


def parts_of(record: object) -> list[dict[str, Any]]:
    """The parts of all `messages` of a record as far as they are objects, to tell a format by."""
    turns = record.get("messages") if isinstance(record, dict) else None
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]


def rest(value: object) -> dict[str, Any]:
    """What a part holds beside its text or the name of its medium, as `detail` of OpenAI; kept as metadata."""
    part = value if isinstance(value, dict) else {}
    extra = fields.rest(part, _PART_KEYS)
    for key in _NAMING_KEYS:
        if isinstance(part.get(key), dict):
            extra |= fields.rest(part[key], media_fields.OBJECT_KEYS)
    return extra


def meta_of_parts(messages: Sequence[Any], key: str = "content") -> dict[str, Any]:
    """What the parts of all messages hold beside what was read, as `{"parts": {"turn.part": fields}}`."""
    extra = {
        f"{turn}.{number}": rest(part)
        for turn, message in enumerate(messages)
        if isinstance(message, dict) and isinstance(message.get(key), list)
        for number, part in enumerate(message[key])
    }
    extra = {place: found for place, found in extra.items() if found}
    return {"parts": extra} if extra else {}


def _text_without_placeholders(part: dict[str, Any], where: str) -> str:
    said = text(part, where)
    for placeholder in XTUNER_PLACEHOLDERS:
        if placeholder in said:
            raise RecordError("placeholder_mismatch", f"{where} places its media with {placeholder}")
    return said


def _medium(part: dict[str, Any], kind: str, where: str) -> MediaReference | Slot:
    """One medium: exactly one key of the part names it; where none does, the place of one of the column."""
    part_type = _KIND_OF_TYPE[kind]
    keys = [key for key in (kind, part_type, "path", "url", "base64", "value") if part.get(key) is not None]
    keys = list(dict.fromkeys(keys))
    if not keys and kind == part_type:
        return Slot(part_type)
    if len(keys) != 1:
        found = " and ".join(map(repr, keys)) or "nothing"
        raise RecordError("bad_schema", f"{where} has {found} to name its {part_type}, not one key")
    place = f"{where}.{keys[0]}"
    if keys[0] != "base64":
        return media_fields.medium(part_type, part[keys[0]], place)
    name = media_fields.reference(part["base64"], place)
    return MediaReference(
        part_type, name if name.startswith("data:") else f"data:application/octet-stream;base64,{name}"
    )
