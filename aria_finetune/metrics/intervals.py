"""How sure a score is: the interval that holds the true one in 95 of 100 samples of rows like these.

Wilson's score interval for shares of right answers, a percentile bootstrap for graded scores; for the difference of two
answers to the same rows Newcombe's interval or the same bootstrap over rows. Draws are seeded: the same scores give the
same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

CONFIDENCE = 0.95
DRAWS = 10_000
SEED = 20_240
_DRAWN_AT_A_TIME = 2**22
"""Numbers of rows drawn at once, 32 MiB of them."""

Interval = tuple[float, float]


def wilson(right: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Of a share of right answers (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).

    Args:
        right: rows answered right.
        total: rows, at least one.
        confidence: how often the interval holds the true share.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    # Rounding must not move the ends that are known.
    return (0.0 if right == 0 else middle - half), (1.0 if right == total else middle + half)


def newcombe(both: int, first_only: int, second_only: int, neither: int, confidence: float = CONFIDENCE) -> Interval:
    """Of the share right the second time less that of the first, over the same rows.

    Newcombe 1998 (Statistics in Medicine 17:2635), method 10: Wilson's intervals of both shares, with their correlation.
    """
    total = both + first_only + second_only + neither
    before, after = (both + first_only) / total, (both + second_only) / total
    low_before, high_before = wilson(both + first_only, total, confidence)
    low_after, high_after = wilson(both + second_only, total, confidence)
    phi = _correlation(both, first_only, second_only, neither)
    difference = after - before
    down, up = after - low_after, high_before - before
    lower = difference - _length(down, up, phi)
    down, up = high_after - after, before - low_before
    return lower, difference + _length(down, up, phi)


def _length(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))


def _correlation(both: int, first_only: int, second_only: int, neither: int) -> float:
    """Phi of the four counts, its numerator moved half the rows towards 0 where it is above it."""
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    if not margins:
        return 0.0
    cross = float(both * neither - first_only * second_only)
    if cross > 0:
        cross = max(0.0, cross - (both + first_only + second_only + neither) / 2)
    return cross / math.sqrt(margins)


def bootstrap(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Of a mean: the middle of the means of so many seeded samples of as many rows, drawn with replacement.

    Efron and Tibshirani 1993, chapter 13. `values` must not be empty.
    """
    import numpy as np  # noqa: PLC0415 (scores of single rows need none)

    drawing = np.random.default_rng(SEED)
    given = np.asarray(values, dtype=np.float64)
    at_a_time = max(1, _DRAWN_AT_A_TIME // len(given))
    means = [
        given[drawing.integers(0, len(given), (min(at_a_time, DRAWS - done), len(given)))].mean(axis=1)
        for done in range(0, DRAWS, at_a_time)
    ]
    outside = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return float(low), float(high)
