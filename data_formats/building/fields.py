"""Checked access to the fields of a parsed record; whatever is missing or of the wrong type is `bad_schema`.

`where` in these functions is the path of the value inside its record, as in `messages[2].content`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from aria_finetune.data_formats.errors import RecordError

_NAMES = {dict: "object", list: "list", str: "text", bool: "true or false", type(None): "null"}


def mapping(value: object, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object."""
    if isinstance(value, dict):
        return value
    raise wrong(value, where, "an object")


def array(value: object, where: str) -> list[Any]:
    """`value` if it is a JSON list."""
    if isinstance(value, list):
        return value
    raise wrong(value, where, "a list")


def text(value: object, where: str) -> str:
    """`value` if it is text, however short."""
    if isinstance(value, str):
        return value
    raise wrong(value, where, "text")


def optional_text(record: Mapping[str, Any], key: str) -> str | None:
    """The text at `key`; None where the key is missing, null or holds empty text."""
    value = record.get(key)
    return None if value is None else text(value, key) or None


def optional_flag(record: Mapping[str, Any], key: str, where: str) -> bool | None:
    """True or false at `key`, also written 1 or 0; None where the key is missing or null."""
    value = record.get(key)
    if value is None or isinstance(value, bool):
        return value
    if value in (0, 1) and isinstance(value, int | float):
        return bool(value)
    raise wrong(value, f"{where}.{key}", "true, false, 1 or 0")


def required(record: Mapping[str, Any], key: str, where: str) -> object:
    """What is at `key`, null included."""
    if key in record:
        return record[key]
    raise RecordError("bad_schema", f"{where} has no {key!r}")


def turn_text(turn: Mapping[str, Any], key: str, speaker: str, where: str) -> str:
    """The text of a turn; an answer of null is empty text, which the rules reject by its own name."""
    value = required(turn, key, where)
    return "" if value is None and speaker == "assistant" else text(value, f"{where}.{key}")


def rest(record: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields a converter has no use for; they are kept as metadata."""
    return {key: value for key, value in record.items() if key not in known}


def json_text(value: object) -> str:
    """`value` as JSON text with the keys in their order; what JSON has no form for, as decimals, becomes text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def compact_json(value: object) -> str:
    """The same without spaces, and quicker: for what no model reads."""
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError:  # an integer beyond 64 bits, or a lone surrogate
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def wrong(value: object, where: str, expected: str) -> RecordError:
    """The error for a value of the wrong type."""
    return RecordError("bad_schema", f"{where} is {_NAMES.get(type(value), 'a number')}, not {expected}")
