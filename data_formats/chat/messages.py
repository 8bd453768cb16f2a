"""Chat messages with `role` and `content`, as OpenAI, Hugging Face, TRL, ms-swift, LLaMA-Factory and Mantis write them.

`content` is text or a list of parts. An image or video is a part with its reference (`image_url`, `video_url`,
or `image` / `video` with `path`, `url` or `base64`), or a bare part or `<image>` / `<video>` in text, filled in
order from `image(s)` / `video(s)` beside the messages. Placeholders in text count only if such a column is there
and no part is a medium; otherwise they are what they seem, text (noticed as `placeholder_kept_as_text`).
A record may also be the bare list of its messages; in a table they may be JSON text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import (
    chat_fields,
    fields,
    instructions,
    media_fields,
    message_parts,
    placeholders,
    preference_keys,
)
from aria_finetune.data_formats.building.turns import Piece, Slot, Turn, draft, role
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, Role

_CONVERSATION_KEYS = ("messages", "conversation", "conversations")
_COLUMN_KEYS = (*media_fields.IMAGE_KEYS, *media_fields.VIDEO_KEYS)
_TOOL_KEYS = ("tools", "functions")
_KNOWN_KEYS = frozenset({*_CONVERSATION_KEYS, *_TOOL_KEYS, *chat_fields.SYSTEM_KEYS, *media_fields.MEDIA_KEYS})
_TURN_KEYS = ("role", "content", *message_parts.CALL_KEYS, *chat_fields.TRAIN_KEYS)


def matches(record: object) -> bool:
    """A list of objects that say `role`, by itself or under `messages`, `conversation` or `conversations`."""
    if isinstance(record, list):
        return bool(record) and all(isinstance(turn, dict) and "role" in turn for turn in record)
    if not isinstance(record, dict) or _is_aria_video(record.get("video")) or preference_keys.is_preference(record):
        return False
    keys = _conversation_keys(record)
    return len(keys) == 1 and _say_role(record[keys[0]])


def matches_under_messages(record: object) -> bool:
    """Chat messages under `messages`, of which several formats are special cases."""
    return isinstance(record, dict) and "messages" in record and matches(record)


def _is_aria_video(video: object) -> bool:
    return isinstance(video, dict) and "bytes" not in video


def _say_role(turns: object) -> bool:
    return not isinstance(turns, list) or all("role" in turn for turn in turns if isinstance(turn, dict))


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `placeholder_mismatch` where a column of
            media and the places for them differ in number.
    """
    source = {"messages": record} if isinstance(record, list) else fields.mapping(record, "the record")
    media_fields.refuse_audio(source)
    key, written = _messages(source)
    turns = [_turn(message, f"{key}[{number}]") for number, message in enumerate(written)]
    boxes, noticed = media_fields.boxes(source, turns)
    turns, repairs = _with_media(turns, source)
    meta = fields.rest(source, _KNOWN_KEYS) | media_fields.rest(source) | boxes
    meta |= chat_fields.meta_of_turns(written, _TURN_KEYS, key) | message_parts.meta_of_parts(written)
    meta, dropped = media_fields.without_bytes(meta)
    turns = [*chat_fields.system_turn(source), *turns]
    yield draft(turns, tools=_tools(source), meta=meta, repairs=(*repairs, *noticed, *dropped))


def _conversation_keys(record: Mapping[str, Any]) -> list[str]:
    """The keys that may hold the conversation; of several only those that hold turns with roles."""
    keys = [key for key in _CONVERSATION_KEYS if key in record]
    return keys if len(keys) < 2 else [key for key in keys if record[key] is not None and _say_role(record[key])]


def _messages(source: Mapping[str, Any]) -> tuple[str, list[Any]]:
    keys = _conversation_keys(source)
    if len(keys) != 1:
        raise RecordError("bad_schema", f"the record needs one of {', '.join(map(repr, _CONVERSATION_KEYS))}")
    value = source[keys[0]]
    return keys[0], fields.array(instructions.parsed(value, keys[0]) if isinstance(value, str) else value, keys[0])


def _tools(source: Mapping[str, Any]) -> str | None:
    given = [source[key] for key in _TOOL_KEYS if source.get(key)]
    if len(given) > 1:
        raise RecordError("bad_schema", "both 'tools' and 'functions' are given")
    return chat_fields.tools({"tools": given[0]}) if given else None


def _turn(value: object, where: str) -> Turn:
    message = fields.mapping(value, where)
    speaker = role(message.get("role"), where)
    return Turn(speaker, tuple(_pieces(message, speaker, where)), chat_fields.train_flag(message, where))


def _pieces(message: Mapping[str, Any], speaker: Role, where: str) -> Iterator[Piece]:
    content, calls = message.get("content"), "".join(message_parts.calls(message))
    if isinstance(content, list):
        for number, part in enumerate(content):
            yield message_parts.piece(part, f"{where}.content[{number}]")
    elif content is not None or not calls:
        yield fields.turn_text(message, "content", speaker, where)
    yield calls


def _with_media(turns: list[Turn], source: Mapping[str, Any]) -> tuple[list[Turn], tuple[str, ...]]:
    pieces = [piece for turn in turns for piece in turn.pieces]
    in_parts = any(isinstance(piece, MediaReference | Slot) for piece in pieces)
    notices: tuple[str, ...] = ()
    if not in_parts and any(key in source for key in _COLUMN_KEYS):
        turns = [placeholders.split(turn) for turn in turns]
    elif _any_placeholder(pieces):
        notices = ("placeholder_kept_as_text",)
    images, videos = media_fields.images(source), media_fields.videos(source)
    turns, repairs = placeholders.fill(turns, images, videos, add_missing=not in_parts)
    return turns, (*repairs, *notices)


def _any_placeholder(pieces: Sequence[Piece]) -> bool:
    return any(isinstance(piece, str) and placeholders.has_placeholder(piece) for piece in pieces)


FORMAT = Format(
    name="messages",
    title="Chat messages of OpenAI, Hugging Face, TRL, ms-swift, LLaMA-Factory and Mantis",
    schema=(
        '{"messages": [{"role": "system" | "developer" | "user" | "assistant" | "tool",\n'
        '               "content": TEXT | [PART], "tool_calls": [CALL], "weight": 0 | 1}],\n'
        ' "images": [PATH], "videos": [PATH], "system": TEXT, "tools": JSON}\n'
        'PART: {"type": "text", "text": TEXT} | {"type": "image", "path" | "url" | "image" | "base64": NAME}\n'
        '    | {"type": "image_url", "image_url": {"url": NAME}} | {"type": "video", "path" | "url" | "video": NAME}\n'
        '    | {"type": "video_url", "video_url": {"url": NAME}} | {"type": "image" | "video"}, filled from the column'
    ),
    example={
        "messages": [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": "<image>What is written on the sign?"},
            {"role": "assistant", "content": "It says that the bridge is closed."},
        ],
        "images": ["images/sign.jpg"],
    },
    traps=(
        "with images or videos beside the messages, <image> and <video> in text are places for them",
        "without such a column they are text, as in an answer about HTML",
        "a column with no place for it at all: the media go before the first user text (placeholder_added)",
        "tool calls become JSON text of the assistant; a content of null is allowed only beside them",
        "a URL is media_remote: nothing is fetched",
        "a file with one list per line needs two lines or more to be told from one JSON array",
        "an assistant turn alone is bad_roles; write text to pretrain on as plain-text",
        "objects of ms-swift stay in the metadata with their coordinate system, and <bbox> in text stays as it is",
        "a record with a rejected answer, or with true or false under label, is one of preferences",
    ),
    keys=_KNOWN_KEYS,
    matches=matches,
    convert=convert,
)
