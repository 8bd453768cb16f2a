"""What records of one instruction and its answer share: former turns, answers in lists, media beside the text."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, placeholders, strict_json
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference

KNOWN_KEYS = frozenset({"history", "tools", *chat_fields.SYSTEM_KEYS, *media_fields.MEDIA_KEYS})
"""The keys that `conversation` and `history` read."""

READ_AS_DOCUMENT = "read_as_document"
"""The notice on an answer to no question that the format documents as text to pretrain on."""


def history(record: Mapping[str, Any]) -> list[Turn]:
    """The turns of `history`, pairs of a question and its answer; a cell of a table holds them as JSON text.

    Raises:
        RecordError: `bad_schema`; a Python literal is not read.
    """
    value = record.get("history")
    if isinstance(value, str):
        value = parsed(value, "history") if value.strip() else None
    turns: list[Turn] = []
    for number, pair in enumerate(fields.array(value, "history") if value is not None else ()):
        where = f"history[{number}]"
        if len(fields.array(pair, where)) != 2:
            raise RecordError("bad_schema", f"{where} is not a question and its answer")
        answer = "" if pair[1] is None else fields.text(pair[1], where)
        turns += [Turn("user", (fields.text(pair[0], where),)), Turn("assistant", (answer,))]
    return turns


def parsed(text: str, where: str) -> object:
    """The JSON value that a cell holds as text.

    Raises:
        RecordError: `bad_schema`.
    """
    try:
        return strict_json.loads(text)
    except (json.JSONDecodeError, strict_json.StrictJSONError) as error:
        raise RecordError("bad_schema", f"{where} is text and not JSON (Python literals are not read)") from error


def answers(value: object, where: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The answer to train on, all accepted ones, and what was noticed; of a list the first is trained on."""
    if not isinstance(value, list):
        return ("" if value is None else fields.text(value, where)), (), ()
    accepted = tuple(fields.text(item, f"{where}[{number}]") for number, item in enumerate(value))
    return (accepted[0] if accepted else ""), accepted, ("first_of_several_answers",) if len(accepted) > 1 else ()


def conversation(
    record: Mapping[str, Any],
    turns: Sequence[Turn],
    known: Collection[str],
    *,
    references: Sequence[str] = (),
    repairs: Sequence[str] = (),
) -> Draft:
    """The draft of `turns` with the media, the system prompt and the tools that stand beside them.

    Raises:
        RecordError: `bad_schema`, `unsupported_modality`, `bad_roles` where nothing is asked, or
            `placeholder_mismatch` where there are placeholders and not as many as media.
    """
    images, videos, beside = _media(record)
    boxes, noticed = media_fields.boxes(record, turns)
    turns = [placeholders.split(turn) if images or videos or turn.role == "user" else turn for turn in turns]
    in_text = any(isinstance(piece, MediaReference) for turn in turns for piece in turn.pieces)
    turns, added = placeholders.fill(turns, images, videos, add_missing=not in_text)
    if any(turn.role == "user" and turn.pieces in {(), ("",)} for turn in turns):
        raise RecordError("bad_roles", "a question is empty, so there is an answer to nothing")
    meta, dropped = media_fields.without_bytes(fields.rest(record, known) | beside | boxes)
    return draft(
        [*chat_fields.system_turn(record), *turns],
        references=references,
        tools=chat_fields.tools(record),
        meta=meta,
        repairs=(*repairs, *added, *noticed, *dropped),
    )


def document(
    record: Mapping[str, Any],
    text: str,
    known: Collection[str],
    *,
    references: Sequence[str] = (),
    repairs: Sequence[str] = (),
) -> Draft:
    """The draft of an answer to no question that the format documents as text to pretrain on.

    Raises:
        RecordError: `bad_schema`, `unsupported_modality` or `placeholder_mismatch`.
    """
    images, videos, beside = _media(record)
    turns = [Turn("assistant", (text,))]
    boxes, noticed = media_fields.boxes(record, turns)
    turns = [placeholders.split(turn) for turn in turns] if images or videos else turns
    turns, _ = placeholders.fill(turns, images, videos, add_missing=False)
    meta, dropped = media_fields.without_bytes(fields.rest(record, known) | beside | boxes)
    return draft(
        turns,
        references=references,
        tools=chat_fields.tools(record),
        meta=meta,
        repairs=(READ_AS_DOCUMENT, *repairs, *noticed, *dropped),
        document=True,
    )


def _media(record: Mapping[str, Any]) -> tuple[list[MediaReference], list[MediaReference], dict[str, Any]]:
    """The images and videos beside the text, and what is said of them; an empty cell of a table holds none."""
    columns = {key: record[key] for key in media_fields.MEDIA_KEYS if record.get(key) not in (None, "")}
    media_fields.refuse_audio(columns)
    return media_fields.images(columns), media_fields.videos(columns), media_fields.rest(columns)
