"""Moments in a video: how far the seconds of an answer overlap the true ones.

Temporal intersection over union with R@0.3, R@0.5 and R@0.7 (Gao et al. 2017, Charades-STA, arXiv 1705.02101). Several
windows count as the set of seconds that they hold together, so that naming all is worth more than naming one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score

RECALLS = (0.3, 0.5, 0.7)
ROUNDING = 1e-9
_TIME = r"(\d+(?::\d{1,2}){1,2}(?:\.\d+)?|\d+(?:\.\d+)?)"
_UNIT = r"\s*(?:s|sec|secs|second|seconds)?\b"
_SPAN = re.compile(rf"{_TIME}{_UNIT}\]?\s*(?:[-\u2013\u2014,~]|to|until|till|and)\s*\[?{_TIME}(?!:?\d)", re.IGNORECASE)

Window = tuple[float, float]


def seconds(clock: str) -> float:
    """`75`, `1:15` and `0:01:15.5` in seconds."""
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part)
    return total


def read_windows(text: str) -> list[Window]:
    """The spans of an answer, in seconds, in its order."""
    return [(seconds(found[1]), seconds(found[2])) for found in _SPAN.finditer(text)]


def true_windows(row: Row) -> list[Window]:
    """The right spans: those that the converter kept, else what the right answer says."""
    kept = row.meta.get("windows")
    if isinstance(kept, list) and kept and all(map(_is_window, kept)):
        return [(float(start), float(end)) for start, end in kept]
    return read_windows(row.expected[0]) if row.expected else []


def _is_window(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value)


def overlap(first: Sequence[Window], second: Sequence[Window]) -> float:
    """Seconds in both by seconds in either; windows that end before they begin hold none."""
    one, other = _merged(first), _merged(second)
    shared = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in one for b in other)
    either = sum(end - start for start, end in (*one, *other)) - shared
    return shared / either if either > 0 else 0.0


def _merged(windows: Sequence[Window]) -> list[Window]:
    """Windows in order, those that touch as one."""
    merged: list[Window] = []
    for start, end in sorted(window for window in windows if window[1] > window[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def score(row: Row, answer: str) -> Score:
    """The overlap; 0 where no span can be read."""
    said = read_windows(answer)
    if not said:
        return Score(0.0, parsed=False)
    read = ", ".join(f"{start:g}-{end:g} s" for start, end in said)
    return Score(overlap(true_windows(row), said), read=read)


def _figures(rows: Sequence[Row], answers: Sequence[str], scores: Sequence[Score]) -> dict[str, float]:  # noqa: ARG001
    return {f"r@{least}": sum(one.value >= least - ROUNDING for one in scores) / len(scores) for least in RECALLS}


MOMENTS = Metric(
    name="moments",
    title="temporal IoU of the seconds named, with R@0.3, R@0.5 and R@0.7",
    source="Gao et al. 2017 (Charades-STA), arXiv 1705.02101",
    score=score,
    fits=lambda row: bool(true_windows(row)),
    binary=False,
    figures=_figures,
)
