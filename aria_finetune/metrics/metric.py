"""A metric: its name, what it asks of a row, and how it scores an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aria_finetune.metrics.rows import Row, Score

Figures = Callable[[Sequence[Row], Sequence[str], Sequence[Score]], Mapping[str, float]]
"""Of rows, the answers to them and their scores: what is said of all of them together, by name."""


def has_answer(row: Row) -> bool:
    """Whether any answer is known to be right."""
    return bool(row.expected)


@dataclass(frozen=True, slots=True)
class Metric:
    """How answers are scored.

    `title` says it in words, `source` where it is defined. `score` judges one answer. `fits` says whether a row has what
    it needs. `binary` metrics know only right and wrong. `figures` adds what only all rows together have.
    `runs_code` marks what runs an answer as a program.
    """

    name: str
    title: str
    source: str
    score: Callable[[Row, str], Score]
    fits: Callable[[Row], bool] = has_answer
    binary: bool = True
    figures: Figures | None = None
    runs_code: bool = False
