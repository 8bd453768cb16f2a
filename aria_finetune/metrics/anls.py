"""ANLS: one minus the edit distance by the length of the longer text, nothing below half; of several answers the best.

Biten et al. 2019 (arXiv 1907.00490), equation 1; case does not count, and runs of white space are one space, as in the
evaluation of DocVQA.
"""

from __future__ import annotations

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score

THRESHOLD = 0.5
"""Share of the longer text from which on a distance is no likeness."""


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions of characters."""
    above = list(range(len(second) + 1))
    for row, letter in enumerate(first, 1):
        line = [row]
        for column, other in enumerate(second, 1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (letter != other)))
        above = line
    return above[-1]


def likeness(expected: str, answer: str) -> float:
    """One answer against one that is right, from 0 to 1; two empty texts are alike."""
    first, second = (" ".join(text.lower().split()) for text in (expected, answer))
    longer = max(len(first), len(second))
    if abs(len(first) - len(second)) >= THRESHOLD * longer > 0:  # without counting: an answer may be a page long
        return 0.0
    distance = edit_distance(first, second) / longer if longer else 0.0
    return 1 - distance if distance < THRESHOLD else 0.0


def score(row: Row, answer: str) -> Score:
    """The best likeness to an accepted answer."""
    return Score(max(likeness(expected, answer) for expected in row.expected))


ANLS = Metric(
    name="anls",
    title="ANLS: 1 - edit distance / longer length, 0 from a distance of half on",
    source="Biten et al. 2019, arXiv 1907.00490, equation 1",
    score=score,
    binary=False,
)
