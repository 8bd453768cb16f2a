"""What chat records of every kind have beside their turns and in them: system prompts, tools, training flags."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields, strict_json
from aria_finetune.data_formats.building.turns import Turn
from aria_finetune.data_formats.errors import RecordError

SYSTEM_KEYS = ("system", "system_prompt")
TRAIN_KEYS = ("weight", "loss", "train")


def system_turn(record: Mapping[str, Any]) -> list[Turn]:
    """The turn made of a `system` or `system_prompt` beside the conversation; none if it is missing or empty."""
    prompts = [prompt for key in SYSTEM_KEYS if (prompt := fields.optional_text(record, key))]
    if len(prompts) > 1:
        raise RecordError("bad_schema", "both 'system' and 'system_prompt' are given")
    return [Turn("system", (prompts[0],))] if prompts else []


def tools(record: Mapping[str, Any]) -> str | None:
    """The `tools` of a record as JSON text, which the source may hold as such already; None if there are none."""
    value = record.get("tools")
    if not isinstance(value, str):
        return fields.json_text(value) if value else None
    if not value.strip():
        return None
    try:
        strict_json.loads(value)
    except (json.JSONDecodeError, strict_json.StrictJSONError) as error:
        raise RecordError("bad_schema", f"tools is text and not JSON: {error}") from error
    return value


def train_flag(turn: Mapping[str, Any], where: str) -> bool | None:
    """Whether a turn asks to be trained on: `weight` 0 or 1, `loss` or `train`; None if it does not say."""
    if not any(key in turn for key in TRAIN_KEYS):
        return None
    flags = {flag for key in TRAIN_KEYS if (flag := fields.optional_flag(turn, key, where)) is not None}
    if len(flags) > 1:
        raise RecordError("bad_schema", f"{where} asks both to be trained on and not to be")
    return flags.pop() if flags else None


def meta_of_turns(turns: Sequence[Mapping[str, Any]], known: Collection[str], key: str) -> dict[str, Any]:
    """What the turns hold beside the known keys, as `{key: {number of the turn: fields}}`; empty if nothing."""
    extra = {
        str(number): fields.rest(turn, known)
        for number, turn in enumerate(turns)
        if any(name not in known for name in turn)
    }
    return {key: extra} if extra else {}
