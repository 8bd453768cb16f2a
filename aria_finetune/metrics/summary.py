"""Scores of all rows together: mean, interval, and the difference between two who answered the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aria_finetune.metrics.intervals import bootstrap, newcombe, wilson
from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.paired import mcnemar, sign_flips
from aria_finetune.metrics.rows import Row, Score

RIGHT = 1 - 1e-9
"""From which score on an answer is wholly right."""


def is_right(score: Score) -> bool:
    """Whether an answer is worth everything it could be."""
    return score.value >= RIGHT


def summarise(metric: Metric, rows: Sequence[Row], answers: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """What a metric says of at least one row: `mean`, `n`, `correct`, `unparsed`, `interval` and the figures of its own."""
    values = [score.value for score in scores]
    right = sum(map(is_right, scores))
    interval = wilson(right, len(values)) if metric.binary else bootstrap(values)
    return {
        "mean": sum(values) / len(values),
        "n": len(values),
        "correct": right,
        "unparsed": sum(not score.parsed for score in scores),
        "interval": list(interval),
        "interval_method": f"95 %, {'Wilson' if metric.binary else 'percentile bootstrap over rows, seeded'}",
        **(metric.figures(rows, answers, scores) if metric.figures else {}),
    }


def compare(metric: Metric, before: Sequence[Score], after: Sequence[Score]) -> dict[str, Any]:
    """The second scores less the first of the same rows, at least one, with an interval and a paired test."""
    differences = [second.value - first.value for first, second in zip(before, after, strict=True)]
    better, worse = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    if metric.binary:
        both = sum(is_right(one) and is_right(other) for one, other in zip(before, after, strict=True))
        interval = newcombe(both, worse, better, len(differences) - both - worse - better)
        p_value, test, method = mcnemar(better, worse), "McNemar, exact", "95 %, Newcombe, paired"
    else:
        interval, p_value = bootstrap(differences), sign_flips(differences)
        test, method = "sign-flip permutation of rows, seeded", "95 %, percentile bootstrap over rows, seeded"
    return {
        "difference": sum(differences) / len(differences),
        "n": len(differences),
        "better": better,
        "worse": worse,
        "interval": list(interval),
        "interval_method": method,
        "test": test,
        "p_value": p_value,
    }
