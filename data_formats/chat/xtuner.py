"""xtuner's chat messages: OpenAI's parts, whose media are listed first and placed by `<IMG_CONTEXT>` in the text.

Media and placeholders are matched in order over the whole record. Where no text has a placeholder, the parts stand
where they are meant, as in xtuner's newer files. A single message of the role `pretrain` is text to go on with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, message_parts, placeholders
from aria_finetune.data_formats.building.message_parts import XTUNER_PLACEHOLDERS
from aria_finetune.data_formats.building.turns import Piece, Slot, Turn, draft, role
from aria_finetune.data_formats.chat import messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, PartType

_KNOWN_KEYS = frozenset({"messages", "tools"})
_TURN_KEYS = ("role", "content", *message_parts.CALL_KEYS, *chat_fields.TRAIN_KEYS)
_PLACEHOLDER = re.compile("|".join(map(re.escape, XTUNER_PLACEHOLDERS)))
_PRETRAIN = "pretrain"
_MEASURES = ("image_wh", "origin_fps", "origin_video_length", "processed_fps", "processed_video_length")


def marks(record: object) -> bool:
    """The role `pretrain`, a placeholder of xtuner in a text, or measures of a picture or video beside its name."""
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        return False
    turns = [message for message in record["messages"] if isinstance(message, dict)]
    parts = message_parts.parts_of(record)
    texts = [holder.get(key) for holders, key in ((turns, "content"), (parts, "text")) for holder in holders]
    return (
        any(turn.get("role") == _PRETRAIN for turn in turns)
        or any(isinstance(text, str) and _PLACEHOLDER.search(text) for text in texts)
        or any(key in message_parts.rest(part) for part in parts for key in _MEASURES)
    )


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation or document of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `placeholder_mismatch` where there are
            placeholders and not as many as media.
    """
    source = fields.mapping(record, "the record")
    media_fields.refuse_audio(source)
    written = fields.array(fields.required(source, "messages", "the record"), "messages")
    document = any(isinstance(message, dict) and message.get("role") == _PRETRAIN for message in written)
    if document and len(written) > 1:
        raise RecordError("bad_roles", "a message of the role 'pretrain' is not the only one")
    turns = [_turn(message, f"messages[{number}]") for number, message in enumerate(written)]
    meta = fields.rest(source, _KNOWN_KEYS) | chat_fields.meta_of_turns(written, _TURN_KEYS, "messages")
    meta, dropped = media_fields.without_bytes(meta | message_parts.meta_of_parts(written))
    yield draft(_placed(turns), tools=chat_fields.tools(source), meta=meta, repairs=dropped, document=document)


def _turn(value: object, where: str) -> Turn:
    message = fields.mapping(value, where)
    name = message.get("role")
    speaker = role("assistant" if name == _PRETRAIN else name, where)
    return Turn(speaker, tuple(_pieces(message, speaker, where)), chat_fields.train_flag(message, where))


def _pieces(message: Mapping[str, Any], speaker: str, where: str) -> Iterator[Piece]:
    content, calls = message.get("content"), "".join(message_parts.calls(message))
    if isinstance(content, list):
        for number, part in enumerate(content):
            yield from _of_part(part, f"{where}.content[{number}]")
    elif content is not None or not calls:
        yield from _split(fields.turn_text(message, "content", speaker, where))
    yield calls


def _of_part(part: object, where: str) -> Iterator[Piece]:
    if isinstance(part, dict) and part.get("type") == "text":
        yield from _split(message_parts.text(part, where))
        return
    piece = message_parts.piece(part, where)
    if isinstance(piece, Slot):
        raise RecordError("bad_schema", f"{where} has nothing to name its {piece.kind}")
    yield piece


def _split(text: str) -> Iterator[Piece]:
    end = 0
    for found in _PLACEHOLDER.finditer(text):
        yield text[end : found.start()]
        yield Slot(XTUNER_PLACEHOLDERS[found[0]])
        end = found.end()
    yield text[end:]


def _placed(turns: list[Turn]) -> list[Turn]:
    """The turns with their media where the placeholders are; without any they stay where they stand."""
    pieces = [piece for turn in turns for piece in turn.pieces]
    if not any(isinstance(piece, Slot) for piece in pieces):
        return turns
    media = [piece for piece in pieces if isinstance(piece, MediaReference)]
    turns = [
        replace(turn, pieces=tuple(piece for piece in turn.pieces if not isinstance(piece, MediaReference)))
        for turn in turns
    ]
    return placeholders.fill(turns, _of_kind(media, "image"), _of_kind(media, "video"), add_missing=False)[0]


def _of_kind(media: list[MediaReference], kind: PartType) -> list[MediaReference]:
    return [medium for medium in media if medium.kind == kind]


FORMAT = Format(
    name="xtuner",
    title="xtuner's chat messages with <IMG_CONTEXT> and <VIDEO_CONTEXT>",
    schema=(
        '{"messages": [{"role": "system" | "user" | "assistant" | "pretrain", "content": TEXT | [PART],\n'
        '               "loss": true | false, "reasoning_content": TEXT}]}\n'
        'PART: {"type": "text", "text": TEXT} | {"type": "image_url", "image_url": {"url": NAME, "image_wh": [W, H]}}\n'
        '    | {"type": "video_url", "video_url": {"url": NAME, "origin_fps": RATE}}'
    ),
    example={
        "id": 1,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "images/left.jpg", "image_wh": [640, 480]}},
                    {"type": "image_url", "image_url": {"url": "images/right.jpg", "image_wh": [640, 480]}},
                    {"type": "text", "text": "Here <IMG_CONTEXT> and there <IMG_CONTEXT>: what has changed?"},
                ],
            },
            {"role": "assistant", "content": "The chair is gone.", "reasoning_content": "Compare the corners."},
        ],
    },
    traps=(
        "the media of a message are listed first and shown where <IMG_CONTEXT> and <VIDEO_CONTEXT> stand",
        "placeholders and not as many media are placeholder_mismatch",
        "without any placeholder the media stay where their parts stand",
        "image_wh, the rates of videos and reasoning_content are kept as metadata and nothing is trained on them",
        "loss of false keeps a turn out of the loss",
        "a message of the role pretrain is a document, and has to be the only one",
        "a file of text alone is read as messages, with the same result",
    ),
    keys=_KNOWN_KEYS,
    matches=messages.matches_under_messages,
    convert=convert,
    narrower_than=("messages",),
    marks=marks,
)
