"""What the chat records of model providers share: parts that call tools, answer for them, think, or hold a file.

A message of theirs may hold the results of tools beside the words of the user, so one message can become several
turns. A part says nothing itself where it only steers their service; it is kept as metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_fields
from aria_finetune.data_formats.building.turns import Piece, Turn, draft, role
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, PartType, Role

PDF = "application/pdf"


@dataclass(frozen=True, slots=True)
class Said:
    """What one part of a message says, in which role, and what of it is kept as metadata.

    With `line` its text stands on a line of its own.
    """

    role: Role
    pieces: tuple[Piece, ...] = ()
    rest: dict[str, Any] = field(default_factory=dict)
    line: bool = False


ReadPart = Callable[[dict[str, Any], Role, str], Said]


def conversation(
    source: Mapping[str, Any],
    keys: tuple[str, str],
    read: ReadPart,
    *,
    known: frozenset[str],
    system: object = None,
    tools: str | None = None,
    roles: Mapping[str | None, str] | None = None,
) -> Draft:
    """The draft of the messages under `keys[0]`, whose parts are under `keys[1]` of each.

    `known` are the keys of the record that need not be kept, `roles` their names for roles that are not the usual.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, or what `read` raises.
    """
    key, content_key = keys
    written = fields.array(fields.required(source, key, "the record"), key)
    prompt = system_text(system, "the system prompt")
    parts: dict[str, Any] = {}
    turns = [Turn("system", (prompt,))] if prompt else []
    for number, value in enumerate(written):
        where = f"{key}[{number}]"
        message = fields.mapping(value, where)
        name = message.get("role")
        speaker = role((roles or {}).get(name, name) if isinstance(name, str | None) else name, where)
        said, rest = turns_of(fields.required(message, content_key, where), speaker, read, f"{where}.{content_key}")
        turns += said
        parts |= {f"{number}.{place}": found for place, found in rest.items()}
    meta = fields.rest(source, known) | _rest_of_blocks(system)
    meta |= chat_fields.meta_of_turns(written, ("role", content_key), key) | ({"parts": parts} if parts else {})
    meta, dropped = media_fields.without_bytes(meta)
    return draft(turns, tools=tools, meta=meta, repairs=dropped)


def turns_of(content: object, speaker: Role, read: ReadPart, where: str) -> tuple[list[Turn], dict[str, Any]]:
    """The turns of one message, whose content is text or a list of parts, and what its parts hold beside."""
    if isinstance(content, str):
        return [Turn(speaker, (content,))], {}
    parts = [fields.mapping(part, f"{where}[{n}]") for n, part in enumerate(fields.array(content, where))]
    said = [read(part, speaker, f"{where}[{number}]") for number, part in enumerate(parts)]
    rest = {str(number): each.rest for number, each in enumerate(said) if each.rest}
    return _grouped([each for each in said if each.pieces]) or [Turn(speaker, ())], rest


def called(call: dict[str, Any], rest: dict[str, Any]) -> Said:
    """A call of a tool: JSON text of the assistant."""
    return Said("assistant", (fields.json_text(call),), rest, line=True)


def result(content: object, read: ReadPart, rest: dict[str, Any], where: str) -> Said:
    """What a tool answered, which is text or parts again."""
    turns, inner = turns_of("" if content is None else content, "tool", read, f"{where}.content")
    pieces = tuple(piece for turn in turns for piece in turn.pieces)
    return Said("tool", pieces or ("",), rest | ({"content": inner} if inner else {}), line=True)


def file(mime: object, source: dict[str, Any], where: str, *, data: str = "data", name: str = "url") -> MediaReference:
    """A picture, video or PDF that a part holds as base64 under `data`, or names under `name`.

    Raises:
        RecordError: `bad_schema`, or `unsupported_modality` for any other kind of file.
    """
    declared = fields.text(mime, where)
    kind = kind_of(declared, where)
    if source.get(data) is None:
        reference = fields.text(fields.required(source, name, where), f"{where}.{name}")
        if not reference:
            raise RecordError("bad_schema", f"{where}.{name} is empty")
        return MediaReference(kind, reference)
    content = source[data]
    if isinstance(content, bytes):
        return MediaReference(kind, where, content=content)
    return MediaReference(kind, f"data:{declared};base64,{fields.text(content, f'{where}.{data}')}")


def kind_of(mime: str, where: str) -> PartType:
    """What is in a file of this media type.

    Raises:
        RecordError: `unsupported_modality`, neither image nor video nor PDF.
    """
    if mime.startswith("image/"):
        return "image"
    if mime.startswith("video/"):
        return "video"
    if mime == PDF:
        return "document"
    raise RecordError("unsupported_modality", f"{where} is of the media type {mime!r:.60}")


def system_text(value: object, where: str) -> str | None:
    """A system prompt: text, or blocks of text, which go on lines of their own; None if it is null or empty."""
    if value is None or isinstance(value, str):
        return value or None
    blocks = [fields.mapping(block, f"{where}[{n}]") for n, block in enumerate(fields.array(value, where))]
    texts = [fields.text(block["text"], f"{where}[{n}].text") for n, block in enumerate(blocks) if "text" in block]
    return "\n".join(texts) or None


def _grouped(said: Sequence[Said]) -> list[Turn]:
    """Turns of what follows each other in the same role."""
    turns: list[Turn] = []
    for each in said:
        if turns and turns[-1].role == each.role:
            between = ("\n",) if each.line else ()
            turns[-1] = Turn(each.role, (*turns[-1].pieces, *between, *each.pieces))
        else:
            turns.append(Turn(each.role, each.pieces))
    return turns


def _rest_of_blocks(system: object) -> dict[str, Any]:
    blocks = [block for block in system if isinstance(block, dict)] if isinstance(system, list) else []
    return chat_fields.meta_of_turns(blocks, ("type", "text"), "system")
