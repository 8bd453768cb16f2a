"""The parts of a chat message, in the spellings of OpenAI, Hugging Face and LLaMA-Factory."""

from __future__ import annotations

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
_PART_KEYS = frozenset({"type", "text", "value", "path", "url", "base64", *_KIND_OF_TYPE})
# xtuner lists the media of a message first and marks their places with these.
_FOREIGN_PLACEHOLDERS = ("<IMG_CONTEXT>", "<VIDEO_CONTEXT>")


def piece(value: object, where: str) -> Piece:
    """The text, medium or empty place that one part of a `content` list stands for.

    Raises:
        RecordError: `bad_schema`, or `unsupported_modality` for a type that is neither text, image nor video.
    """
    part = fields.mapping(value, where)
    kind = part.get("type")
    if kind == "text":
        return _text(part, where)
    if isinstance(kind, str) and kind in _KIND_OF_TYPE:
        return _medium(part, kind, where)
    if "type" not in part:
        raise RecordError("bad_schema", f"{where} has no 'type'")
    raise RecordError("unsupported_modality", f"{where} is of type {kind!r:.60}")


def rest(value: object) -> dict[str, Any]:
    """What a part holds beside its text or the name of its medium, as `detail` of OpenAI; kept as metadata."""
    part = value if isinstance(value, dict) else {}
    extra = fields.rest(part, _PART_KEYS)
    for key in _KIND_OF_TYPE:
        if isinstance(part.get(key), dict):
            extra |= fields.rest(part[key], ("url", "path"))
    return extra


def _text(part: dict[str, Any], where: str) -> str:
    key = "value" if "value" in part else "text"
    text = fields.text(fields.required(part, key, where), f"{where}.{key}")
    for placeholder in _FOREIGN_PLACEHOLDERS:
        if placeholder in text:
            raise RecordError("placeholder_mismatch", f"{where} places its media with {placeholder}")
    return text


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
    name = media_fields.reference(part[keys[0]], f"{where}.{keys[0]}")
    if keys[0] == "base64" and not name.startswith("data:"):
        name = f"data:application/octet-stream;base64,{name}"
    return MediaReference(part_type, name)
