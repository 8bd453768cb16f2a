"""Exact match: one of the accepted answers, aside from case, surrounding space and a final full stop."""

from __future__ import annotations

from collections.abc import Iterable

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score


def normalise(answer: str) -> str:
    """An answer as it is compared: lower case, single spaces, no final full stop."""
    return " ".join(answer.casefold().split()).removesuffix(".")


def is_correct(accepted: Iterable[str], answer: str) -> bool:
    """Whether an answer is one of the accepted ones."""
    return normalise(answer) in {normalise(one) for one in accepted}


def score(row: Row, answer: str) -> Score:
    """1 for an accepted answer, else 0."""
    return Score(float(is_correct(row.expected, answer)))


EXACT = Metric(
    name="exact",
    title="exact match, aside from case, surrounding space and a final full stop",
    source="Rajpurkar et al. 2016, section 6.1, without its removal of articles and punctuation",
    score=score,
)
