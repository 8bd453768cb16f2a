"""Whether two scores of the same rows differ by more than chance: each row is its own control.

McNemar's exact test where answers are right or wrong, a sign-flip permutation test where scores are graded. Both are
two-sided; neither assumes that rows are many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DRAWS = 10_000
SEED = 20_241
ENUMERATED = 16
"""Up to so many rows whose scores differ, every assignment of signs is looked at; from there on seeded draws."""

_ROUNDING = 1e-12
_AT_A_TIME = 2**20


def mcnemar(better: int, worse: int) -> float:
    """The p-value of so many rows that became right and so many that became wrong, were both as likely (McNemar 1947).

    Twice the binomial tail of the smaller count, at most 1.
    """
    changed, fewer = better + worse, min(better, worse)
    # By logarithms, as the counts of ways have thousands of digits where thousands of rows changed.
    ways = (
        math.lgamma(changed + 1) - math.lgamma(count + 1) - math.lgamma(changed - count + 1)
        for count in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(way - changed * math.log(2)) for way in ways))


def sign_flips(differences: Sequence[float]) -> float:
    """The p-value of a mean difference, were each row's as likely the other way round (Fisher 1935, section 21).

    Exact up to `ENUMERATED` rows that differ; else of seeded draws, the sample itself among them, so never 0.
    """
    import numpy as np  # noqa: PLC0415 (scores of single rows need none)

    given = np.asarray([one for one in differences if abs(one) > _ROUNDING], dtype=np.float64)
    if not len(given):
        return 1.0
    seen = abs(given.sum()) - _ROUNDING * len(given)
    if len(given) <= ENUMERATED:
        patterns = np.arange(2 ** len(given))[:, None] >> np.arange(len(given)) & 1
        return float((np.abs((1 - 2 * patterns) @ given) >= seen).mean())
    drawing = np.random.default_rng(SEED)
    at_a_time = max(1, _AT_A_TIME // len(given))
    as_far = 0
    for done in range(0, DRAWS, at_a_time):
        signs = 1 - 2 * drawing.integers(0, 2, (min(at_a_time, DRAWS - done), len(given)))
        as_far += int((np.abs(signs @ given) >= seen).sum())
    return (as_far + 1) / (DRAWS + 1)
