"""The conversations that Amazon Bedrock takes for fine-tuning: parts without a type, each of one key.

Pictures, videos and PDFs lie in S3 or are held as base64. Calls of tools become JSON text of the assistant and their
results turns of the role `tool`. Reasoning is kept as metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aria_finetune.data_formats.building import fields, message_parts, provider_parts
from aria_finetune.data_formats.building.provider_parts import Said
from aria_finetune.data_formats.chat import messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, Role

_KNOWN_KEYS = frozenset({"system", "messages", "toolConfig"})
_FAMILY_OF_KEY = {"image": "image", "video": "video", "document": "application"}
_SILENT = ("reasoningContent", "cachePoint")


def marks(record: object) -> bool:
    """`schemaVersion`, or parts that have no type."""
    versioned = isinstance(record, dict) and "schemaVersion" in record
    return versioned or any("type" not in part for part in message_parts.parts_of(record))


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles` or `unsupported_modality`.
    """
    source = fields.mapping(record, "the record")
    tools = fields.json_text(source["toolConfig"]) if source.get("toolConfig") else None
    yield provider_parts.conversation(
        source, ("messages", "content"), _part, known=_KNOWN_KEYS, system=source.get("system"), tools=tools
    )


def _part(part: dict[str, Any], speaker: Role, where: str) -> Said:
    given = {key: value for key, value in part.items() if value is not None and key != "type"}
    if len(given) != 1:
        raise RecordError("bad_schema", f"{where} holds {', '.join(map(repr, given)) or 'nothing'}, not one thing")
    ((key, value),) = given.items()
    if key == "text":
        return Said(speaker, (fields.text(value, f"{where}.text"),))
    if key == "json":
        return Said(speaker, (fields.json_text(value),))
    if key in _SILENT:
        return Said(speaker, (), given)
    return _block(key, value, speaker, f"{where}.{key}")


def _block(key: str, value: object, speaker: Role, where: str) -> Said:
    if key in _FAMILY_OF_KEY:
        return _file(key, fields.mapping(value, where), speaker, where)
    if key == "toolUse":
        return provider_parts.called(fields.mapping(value, where), {})
    if key == "toolResult":
        block = fields.mapping(value, where)
        return provider_parts.result(block.get("content"), _part, fields.rest(block, ("content",)), where)
    raise RecordError("unsupported_modality", f"{where} is of a kind that is not known")


def _file(key: str, block: dict[str, Any], speaker: Role, where: str) -> Said:
    source = fields.mapping(block.get("source"), f"{where}.source")
    if source.get("bytes") is None:
        source = fields.mapping(source.get("s3Location"), f"{where}.source.s3Location")
    mime = f"{_FAMILY_OF_KEY[key]}/{fields.text(block.get('format'), f'{where}.format')}"
    medium = provider_parts.file(mime, source, f"{where}.source", data="bytes", name="uri")
    return Said(speaker, (medium,), fields.rest(block, ("format", "source")) | fields.rest(source, ("bytes", "uri")))


FORMAT = Format(
    name="bedrock",
    title="Amazon Bedrock's conversations (Converse, Nova)",
    schema=(
        '{"schemaVersion": "bedrock-conversation-2024", "system": [{"text": TEXT}], "toolConfig": OBJECT,\n'
        ' "messages": [{"role": "user" | "assistant", "content": [PART]}]}\n'
        'PART: {"text": TEXT} | {"toolUse": CALL} | {"toolResult": {"toolUseId": ID, "content": [PART]}}\n'
        '    | {"image" | "video" | "document": {"format": ENDING, "source": {"s3Location": {"uri": URI}}}}\n'
        '    | {"image" | "video" | "document": {"format": ENDING, "source": {"bytes": BASE64}}}'
    ),
    example={
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "Answer in one sentence."}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"image": {"format": "jpeg", "source": {"s3Location": {"uri": "s3://bucket/images/sign.jpg"}}}},
                    {"text": "What does the sign say?"},
                ],
            },
            {"role": "assistant", "content": [{"text": "It says that the bridge is closed."}]},
        ],
    },
    traps=(
        "parts have no type; the one key that is not null says what they are",
        "s3:// is media_remote unless it is mapped to a folder",
        "of documents only PDFs can be shown; any other is unsupported_modality",
        "a toolResult stands in a message of the user and becomes a turn of the role tool",
    ),
    keys=_KNOWN_KEYS | {"schemaVersion"},
    matches=messages.matches_under_messages,
    convert=convert,
    narrower_than=("messages",),
    marks=marks,
)
