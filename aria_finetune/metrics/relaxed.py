"""Relaxed accuracy of ChartQA: numbers within 5 % of the right one, all else word for word.

Masry et al. 2022 (arXiv 2203.10244), section 5.1, after Methani et al. 2020. `12%` is the number 0.12, so `12` is wrong
where `12%` is right; so it is in the published code, and a number with a unit or with `1,000` is text there.
"""

from __future__ import annotations

import re

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score

TOLERANCE = 0.05
_NUMBER = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*")


def number_in(text: str) -> float | None:
    """The number that a text is, a percentage as its hundredth; None if it is anything else."""
    bare = text.removesuffix("%")
    if not _NUMBER.fullmatch(bare):
        return None
    return float(bare) / 100 if bare != text else float(bare)


def is_close(expected: str, answer: str) -> bool:
    """Whether an answer is right by the published rule; a right answer of 0 is compared as text."""
    wanted, given = number_in(expected.strip()), number_in(answer.strip())
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= TOLERANCE
    return expected.strip().lower() == answer.strip().lower()


def score(row: Row, answer: str) -> Score:
    """1 if any accepted answer is met, else 0."""
    return Score(float(any(is_close(expected, answer) for expected in row.expected)))


RELAXED = Metric(
    name="relaxed",
    title="relaxed accuracy: numbers within 5 %, all else word for word",
    source="Masry et al. 2022 (ChartQA), arXiv 2203.10244, section 5.1",
    score=score,
)
