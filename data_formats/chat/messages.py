"""Chat messages with `role` and `content`, as OpenAI, Hugging Face, TRL, ms-swift, LLaMA-Factory and Mantis write them.

`content` is text or a list of parts. An image or video is a part with its reference (`image_url`, `video_url`,
or `image` / `video` with `path`, `url` or `base64`), or a bare part or `<image>` / `<video>` in text, filled in
order from `image(s)` / `video(s)` beside the messages. Placeholders in text count only if such a column is there
and no part is a medium; otherwise they are what they seem, text (noticed as `placeholder_kept_as_text`).
A record may also be the bare list of its messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, message_parts, placeholders
from aria_finetune.data_formats.building.turns import Piece, Slot, Turn, draft, role
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, Role

_CONVERSATION_KEYS = ("messages", "conversation", "conversations")
_COLUMN_KEYS = (*media_fields.IMAGE_KEYS, *media_fields.VIDEO_KEYS)
_KNOWN_KEYS = frozenset({*_CONVERSATION_KEYS, "tools", *chat_fields.SYSTEM_KEYS, *media_fields.MEDIA_KEYS})
_TURN_KEYS = ("role", "content", "tool_calls", *chat_fields.TRAIN_KEYS)


def matches(record: object) -> bool:
    """A list of objects that say `role`, by itself or under `messages`, `conversation` or `conversations`."""
    if isinstance(record, list):
        return bool(record) and all(isinstance(turn, dict) and "role" in turn for turn in record)
    if not isinstance(record, dict) or isinstance(record.get("video"), dict):
        return False
    keys = _conversation_keys(record)
    return len(keys) == 1 and _say_role(record[keys[0]])


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
    turns, repairs = _with_media(turns, source)
    meta = fields.rest(source, _KNOWN_KEYS)
    meta |= chat_fields.meta_of_turns(written, _TURN_KEYS, key) | _meta_of_parts(written)
    system = chat_fields.system_turn(source)
    yield draft([*system, *turns], tools=chat_fields.tools(source), meta=meta, repairs=repairs)


def _conversation_keys(record: Mapping[str, Any]) -> list[str]:
    """The keys that may hold the conversation; of several only those that hold turns with roles."""
    keys = [key for key in _CONVERSATION_KEYS if key in record]
    return keys if len(keys) < 2 else [key for key in keys if record[key] is not None and _say_role(record[key])]


def _messages(source: Mapping[str, Any]) -> tuple[str, list[Any]]:
    keys = _conversation_keys(source)
    if len(keys) != 1:
        raise RecordError("bad_schema", f"the record needs one of {', '.join(map(repr, _CONVERSATION_KEYS))}")
    return keys[0], fields.array(source[keys[0]], keys[0])


def _turn(value: object, where: str) -> Turn:
    message = fields.mapping(value, where)
    speaker = role(message.get("role"), where)
    return Turn(speaker, tuple(_pieces(message, speaker, where)), chat_fields.train_flag(message, where))


def _pieces(message: Mapping[str, Any], speaker: Role, where: str) -> Iterator[Piece]:
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        for number, part in enumerate(content):
            yield message_parts.piece(part, f"{where}.content[{number}]")
    elif content is not None or not calls:
        yield fields.turn_text(message, "content", speaker, where)
    if calls:
        yield "\n" if content else ""
        yield fields.json_text(calls)


def _meta_of_parts(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    extra = {
        f"{turn}.{number}": message_parts.rest(part)
        for turn, message in enumerate(messages)
        if isinstance(message.get("content"), list)
        for number, part in enumerate(message["content"])
    }
    extra = {place: found for place, found in extra.items() if found}
    return {"parts": extra} if extra else {}


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
    ),
    keys=_KNOWN_KEYS,
    matches=matches,
    convert=convert,
)
