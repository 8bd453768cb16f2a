"""Anthropic's messages: parts with a `source`, calls of tools and their results, thoughts.

Pictures and PDFs are named by URL or held as base64. A call becomes JSON text of the assistant and a result a turn
of the role `tool`, although it stands in a message of the user. Thoughts are kept as metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, message_parts, provider_parts
from aria_finetune.data_formats.building.provider_parts import Said
from aria_finetune.data_formats.building.turns import Piece
from aria_finetune.data_formats.chat import messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, Role

_KNOWN_KEYS = frozenset({"system", "messages", "tools"})
_THOUGHTS = ("thinking", "redacted_thinking")
_OWN_TYPES = ("tool_use", "tool_result", "document", *_THOUGHTS)
# What a URL leads to is for whoever fetches it; the type of the part says as much as is needed here.
_MIME_OF_TYPE = {"image": "image/*", "document": provider_parts.PDF}


def marks(record: object) -> bool:
    """A part with `source`, or of a type that only Anthropic has; or a system prompt in blocks with types."""
    system = record.get("system") if isinstance(record, dict) else None
    blocks = system if isinstance(system, list) else []
    return any(isinstance(block, dict) and "type" in block for block in blocks) or any(
        "type" in part and (part.get("source") is not None or part["type"] in _OWN_TYPES)
        for part in message_parts.parts_of(record)
    )


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `media_remote` for an uploaded file.
    """
    source = fields.mapping(record, "the record")
    yield provider_parts.conversation(
        source,
        ("messages", "content"),
        _part,
        known=_KNOWN_KEYS,
        system=source.get("system"),
        tools=chat_fields.tools(source),
    )


def _part(part: dict[str, Any], speaker: Role, where: str) -> Said:
    match part.get("type"):
        case "text":
            text = fields.text(fields.required(part, "text", where), f"{where}.text")
            return Said(speaker, (text,), fields.rest(part, ("type", "text")))
        case ("image" | "document") as kind:
            return Said(speaker, (_file(part, kind, where),), fields.rest(part, ("type", "source")))
        case "tool_use":
            return provider_parts.called(fields.rest(part, ("type",)), {})
        case "tool_result":
            rest = fields.rest(part, ("type", "content"))
            return provider_parts.result(part.get("content"), _part, rest, where)
        case "thinking" | "redacted_thinking":
            return Said(speaker, (), part)
        case None:
            raise RecordError("bad_schema", f"{where} has no 'type'")
        case kind:
            raise RecordError("unsupported_modality", f"{where} is of type {kind!r:.60}")


def _file(part: dict[str, Any], kind: str, where: str) -> Piece:
    place = f"{where}.source"
    source = fields.mapping(part.get("source"), place)
    match source.get("type"):
        case "base64":
            data = {"data": fields.required(source, "data", place)}
            return provider_parts.file(fields.required(source, "media_type", place), data, place)
        case "url":
            return provider_parts.file(_MIME_OF_TYPE[kind], {"url": fields.required(source, "url", place)}, place)
        case "text":
            return fields.text(fields.required(source, "data", place), f"{place}.data")
        case "file":
            raise RecordError("media_remote", f"{place} names a file that was uploaded to the provider")
        case other:
            raise RecordError("bad_schema", f"{place} is of type {other!r:.60}, not base64, url, file or text")


FORMAT = Format(
    name="anthropic",
    title="Anthropic's messages",
    schema=(
        '{"system": TEXT | [{"type": "text", "text": TEXT}], "tools": [TOOL],\n'
        ' "messages": [{"role": "user" | "assistant", "content": TEXT | [PART]}]}\n'
        'PART: {"type": "text", "text": TEXT}\n'
        '    | {"type": "image" | "document", "source": {"type": "base64", "media_type": TYPE, "data": BASE64}}\n'
        '    | {"type": "image" | "document", "source": {"type": "url", "url": URL}}\n'
        '    | {"type": "tool_use", "id": ID, "name": TEXT, "input": OBJECT}\n'
        '    | {"type": "tool_result", "tool_use_id": ID, "content": TEXT | [PART]}'
    ),
    example={
        "system": [{"type": "text", "text": "Answer in one sentence."}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                    },
                    {"type": "text", "text": "What does the sign say?"},
                ],
            },
            {"role": "assistant", "content": "It says that the bridge is closed."},
        ],
    },
    traps=(
        "a tool_result stands in a message of the user and becomes a turn of the role tool",
        "a tool_use becomes JSON text of the assistant, on a line of its own",
        "what a file is, is told by its bytes; media_type may be wrong",
        "thoughts and cache_control are kept as metadata and not trained on",
        "a URL or an uploaded file is media_remote: nothing is fetched",
        "a file of text alone is read as messages, with the same result",
    ),
    keys=_KNOWN_KEYS,
    matches=messages.matches_under_messages,
    convert=convert,
    narrower_than=("messages",),
    marks=marks,
)
