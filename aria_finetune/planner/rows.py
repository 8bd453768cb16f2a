"""How long rows are and what is in them, as counts that a plan can show. Knows numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
NAMES = ("least", "median", "p90", "p99", "most")


@dataclass(frozen=True)
class Bin:
    """Rows of `first` to `last` tokens."""

    first: int
    last: int
    rows: int


def histogram(tokens: Sequence[int]) -> list[Bin]:
    """Rows by their number of tokens, in bins that double, from that of the shortest to that of the longest."""
    if not tokens:
        return []
    counts: dict[int, int] = {}
    for count in tokens:
        power = max(count - 1, 0).bit_length()
        counts[power] = counts.get(power, 0) + 1
    return [
        Bin((1 << (power - 1)) + 1 if power else 0, 1 << power, counts.get(power, 0))
        for power in range(min(counts), max(counts) + 1)
    ]


def quantiles(tokens: Sequence[int]) -> dict[str, int]:
    """The shortest and longest row, the median, and what 90 and 99 in 100 rows do not pass."""
    ordered = sorted(tokens)
    if not ordered:
        return {}
    places = (max(math.ceil(share * len(ordered)) - 1, 0) for share in QUANTILES)
    return dict(zip(NAMES, (ordered[place] for place in places), strict=True))
