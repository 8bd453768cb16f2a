"""The conversations of Google's Gemini and Vertex AI: `contents` of `parts`, the assistant called `model`.

Pictures, videos and PDFs are named by URI or held as base64, told apart by their media type. Calls of functions
become JSON text of the assistant and their results turns of the role `tool`. Thoughts are kept as metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, provider_parts
from aria_finetune.data_formats.building.provider_parts import Said
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, Role

_SYSTEM_KEYS = ("systemInstruction", "system_instruction")
_KNOWN_KEYS = frozenset({*_SYSTEM_KEYS, "contents", "tools"})
_ROLES: dict[str | None, str] = {"model": "assistant", None: "user"}
_CLIP_KEYS = ("startOffset", "endOffset")
_SECONDS = re.compile(r"(\d+(?:\.\d*)?)s")
# The same names in camel case in JSON and in snake case in Python.
_CAMEL = {
    "file_data": "fileData",
    "inline_data": "inlineData",
    "function_call": "functionCall",
    "function_response": "functionResponse",
    "video_metadata": "videoMetadata",
    "thought_signature": "thoughtSignature",
    "mime_type": "mimeType",
    "file_uri": "fileUri",
    "start_offset": "startOffset",
    "end_offset": "endOffset",
}


def matches(record: object) -> bool:
    """`contents` whose entries, as far as they are objects, have `parts`."""
    if not isinstance(record, dict) or "contents" not in record:
        return False
    turns = record["contents"]
    return not isinstance(turns, list) or all("parts" in turn for turn in turns if isinstance(turn, dict))


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles` or `unsupported_modality`.
    """
    source = fields.mapping(record, "the record")
    given = [source[key] for key in _SYSTEM_KEYS if source.get(key) is not None]
    if len(given) > 1:
        raise RecordError("bad_schema", "the system instruction is given twice")
    system = given[0].get("parts") if given and isinstance(given[0], dict) else next(iter(given), None)
    yield provider_parts.conversation(
        source,
        ("contents", "parts"),
        _part,
        known=_KNOWN_KEYS,
        system=system,
        tools=chat_fields.tools(source),
        roles=_ROLES,
    )


def _part(part: dict[str, Any], speaker: Role, where: str) -> Said:
    given = _camel({key: value for key, value in part.items() if value is not None}, where)
    clip = _camel(given.pop("videoMetadata", {}), f"{where}.videoMetadata")
    if given.pop("thought", False):
        return Said(speaker, (), part)
    signature = given.pop("thoughtSignature", None)
    rest = {} if signature is None else {"thoughtSignature": signature}
    if len(given) != 1:
        raise RecordError("bad_schema", f"{where} holds {', '.join(map(repr, given)) or 'nothing'}, not one thing")
    ((key, value),) = given.items()
    match key:
        case "text":
            return Said(speaker, (fields.text(value, f"{where}.text"),), rest)
        case "fileData" | "inlineData":
            return _file(_camel(value, f"{where}.{key}"), clip, Said(speaker, (), rest), f"{where}.{key}")
        case "functionCall":
            return provider_parts.called(fields.mapping(value, f"{where}.{key}"), rest)
        case "functionResponse":
            return Said("tool", (fields.json_text(value),), rest, line=True)
        case _:
            raise RecordError("unsupported_modality", f"{where} is of the kind {key!r:.60}")


def _file(block: dict[str, Any], clip: dict[str, Any], said: Said, where: str) -> Said:
    mime = fields.required(block, "mimeType", where)
    medium = provider_parts.file(mime, block, where, name="fileUri")
    rest = said.rest | fields.rest(block, ("mimeType", "fileUri", "data"))
    if medium.kind == "video":
        medium = replace(medium, start=_seconds(clip, "startOffset", where), end=_seconds(clip, "endOffset", where))
        clip = fields.rest(clip, _CLIP_KEYS)
    return replace(said, pieces=(medium,), rest=rest | clip)


def _camel(value: object, where: str) -> dict[str, Any]:
    return {_CAMEL.get(key, key): item for key, item in fields.mapping(value, where).items()}


def _seconds(clip: Mapping[str, Any], key: str, where: str) -> float | None:
    value = clip.get(key)
    if value is None:
        return None
    found = _SECONDS.fullmatch(fields.text(value, f"{where}: {key}"))
    if not found:
        raise RecordError("bad_schema", f"{where}: {key} is {value!r:.60}, not seconds as in 1.5s")
    return float(found[1])


FORMAT = Format(
    name="gemini",
    title="Contents of Gemini and Vertex AI",
    schema=(
        '{"systemInstruction": {"parts": [{"text": TEXT}]}, "tools": [TOOL],\n'
        ' "contents": [{"role": "user" | "model", "parts": [PART]}]}\n'
        'PART: {"text": TEXT} | {"fileData": {"mimeType": TYPE, "fileUri": URI}}\n'
        '    | {"inlineData": {"mimeType": TYPE, "data": BASE64}} | {"functionCall": CALL} | {"functionResponse": OBJECT}\n'
        '"videoMetadata": {"startOffset": "1.5s", "endOffset": "9s"} beside a video names a clip of it'
    ),
    example={
        "systemInstruction": {"role": "system", "parts": [{"text": "Answer in one sentence."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://bucket/videos/door.mp4"}},
                    {"text": "Who comes in?"},
                ],
            },
            {"role": "model", "parts": [{"text": "A woman with a dog."}]},
        ],
    },
    traps=(
        "the assistant is called model, and a content without a role is the user's",
        "gs:// is media_remote unless it is mapped to a folder",
        "the media type tells image, video and PDF apart; sound and any other type is unsupported_modality",
        "parts marked as a thought are kept as metadata and not trained on",
        "keys in snake case, as Python writes them, are the same",
    ),
    keys=_KNOWN_KEYS,
    matches=matches,
    convert=convert,
)
