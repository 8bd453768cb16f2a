"""Decoder layers as a recipe names them: numbers from 0, numbers from the end below 0, ranges such as 20-27. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Layer = int | str
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")


def check_layer(entry: object) -> object:
    """What may stand in `lora.layers`.

    Raises:
        ValueError: it is neither a whole number nor two of them, the smaller first, with a dash between.
    """
    if isinstance(entry, str) and (found := _RANGE.fullmatch(entry.strip())):
        if int(found[1]) > int(found[2]):
            raise ValueError("ends before it begins")
    elif isinstance(entry, bool) or not isinstance(entry, int):
        raise ValueError("must be the number of a layer, or a range of them such as 20-27")
    return entry


def resolve_layers(entries: Iterable[Layer], layers: int) -> tuple[int, ...]:
    """The numbers, in their order, of the layers that are named in a decoder of so many.

    Args:
        entries: each of which `check_layer` lets pass; they may overlap.
        layers: how many there are.

    Raises:
        LookupError: an entry names a layer that is not there; it is what the error holds.
    """
    found: set[int] = set()
    for entry in entries:
        numbers = _numbers(entry, layers)
        if not all(0 <= number < layers for number in (numbers[0], numbers[-1])):
            raise LookupError(entry)
        found.update(numbers)
    return tuple(sorted(found))


def _numbers(entry: Layer, layers: int) -> Sequence[int]:
    if isinstance(entry, int):
        return [entry + layers if entry < 0 else entry]
    first, last = (int(number) for number in entry.split("-"))
    return range(first, last + 1)
