"""JSON as its standard has it: no NaN, no Infinity, no duplicate key, no bottomless nesting.

The standard library reads all of these, and whatever comes next then stumbles over them.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

_MOST_DIGITS = 308

MAX_DEPTH = 100
"""How many objects and lists may lie in each other; real records have fewer than ten."""


class StrictJSONError(ValueError):
    """Text that a lenient reader takes for JSON; `message` says what is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def loads(text: str) -> object:
    """The value written in `text`.

    Raises:
        json.JSONDecodeError: not JSON; it has the line and the column.
        StrictJSONError: NaN, Infinity, a number too long or too large, a duplicate key, or nesting over `MAX_DEPTH`.
    """
    return decode(text.strip())[0]


def decode(text: str, start: int = 0, *, whole: bool = True) -> tuple[object, int]:
    """The value that begins at `start`, and where it ends; with `whole` the text has to end there too.

    Raises as `loads` does.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise StrictJSONError(f"nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise StrictJSONError(str(error)) from error
    if whole and end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    if _may_be_deep(text, start, end) and _depth(value) > MAX_DEPTH:
        raise StrictJSONError(f"nested deeper than {MAX_DEPTH} levels")
    return value, end


def end_of_value(text: str, start: int) -> int:
    """Where the value that begins at `start` ends, however much the strict rules mind what is in it.

    Raises:
        json.JSONDecodeError: not JSON.
        StrictJSONError: nested too deeply to find the end.
    """
    try:
        return _LENIENT_DECODER.raw_decode(text, start)[1]
    except RecursionError as error:
        raise StrictJSONError(f"nested deeper than {MAX_DEPTH} levels") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise StrictJSONError(f"duplicate key {twice!r:.60}")
    return value


def _constant(name: str) -> NoReturn:
    raise StrictJSONError(f"{name} is not JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise StrictJSONError(f"{digits:.40} is too large a number")
    return value


def _int(digits: str) -> int:
    value = int(digits)
    # Of a larger one no float can be made, which is what seconds and sizes become.
    if len(digits) > _MOST_DIGITS and math.isinf(float(digits)):
        raise StrictJSONError(f"{digits:.40} is too large a number")
    return value


def _may_be_deep(text: str, start: int, end: int) -> bool:
    return text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)
_LENIENT_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
