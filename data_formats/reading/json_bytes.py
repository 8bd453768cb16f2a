"""Where a JSON value ends, found among bytes without parsing it."""

from __future__ import annotations

import re

_SPACE = re.compile(rb"[ \t\r\n]*+")
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.)*+("?)|[\[\]{}]', re.DOTALL)
_END_OF_PLAIN_VALUE = re.compile(rb'"(?:[^"\\]+|\\.)*+"|[^,\]\s"]+', re.DOTALL)


def skip_space(data: bytes, place: int) -> int:
    """The first place from `place` on that holds no white space."""
    space = _SPACE.match(data, place)
    return space.end() if space else place


def end_of_value(data: bytes, start: int) -> int | None:
    """Where the value that begins at `start` ends; None if the data end before it does."""
    if data[start : start + 1] not in {b"{", b"["}:
        plain = _END_OF_PLAIN_VALUE.match(data, start)
        return plain.end() if plain and plain.end() < len(data) else None
    depth = 0
    for token in _TOKEN.finditer(data, start):
        mark = token[0]
        if mark in {b"{", b"["}:
            depth += 1
        elif mark in {b"}", b"]"}:
            depth -= 1
            if not depth:
                return token.end()
        elif not token[1]:
            return None
    return None
