"""Boxes: right if they overlap the true one by half, whatever coordinates either is written in.

Precision@1 at an intersection over union of 0.5, as for RefCOCO (Yu et al. 2016, arXiv 1608.00272). Aria writes
`(x1,y1),(x2,y2)` in thousandths of width and height, 0 to 999, which is how the authors' evaluation reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score

THRESHOLD = 0.5
ROUNDING = 1e-9
"""By how much sums of shares may miss a half that is one in whole pixels."""

ARIA_SCALE = 999.0
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PAIRS = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,?\s*\({_NUMBER},{_NUMBER}\)")
_FOUR = re.compile(rf"(?<![\d.]){_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}(?![\d.])")

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of width and height."""


@dataclass(frozen=True, slots=True)
class System:
    """How four numbers are meant: of which whole they are parts, None for pixels, and whether two of them are sides."""

    whole: float | None
    sides: bool = False


SYSTEMS: Mapping[str, System] = {
    "xywh pixels": System(None, sides=True),
    "xyxy pixels": System(None),
    "xywh 0-1": System(1.0, sides=True),
    "xyxy 0-1": System(1.0),
    "xyxy 0-999": System(ARIA_SCALE),
    "xyxy 0-1000": System(1000.0),
}
ARIA = SYSTEMS["xyxy 0-999"]


def as_shares(numbers: Sequence[float], system: System, size: tuple[float, float] | None) -> Box | None:
    """Four numbers of a system as shares of the picture; None where they are pixels and its size is not known."""
    first, second, third, fourth = numbers
    if system.sides:
        third, fourth = first + third, second + fourth
    if system.whole is None and size is None:
        return None
    width, height = size if system.whole is None and size else (system.whole or 1.0, system.whole or 1.0)
    return first / width, second / height, third / width, fourth / height


def overlap(first: Box, second: Box) -> float:
    """Intersection over union, from 0 to 1; a box that ends before it begins has no area."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, across) * max(0.0, down)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def read_box(text: str, row: Row) -> Box | None:
    """The first box of a text; None if there is none.

    Two points in parentheses are Aria's own, 0 to 999, or shares if no number is over 1 and any is broken. Four numbers in a
    row are in the coordinates of the right answer where those are shares, with corners or sides; else the same holds of
    them, as of corners, and if they are no shares they are in the coordinates of the right answer.
    """
    pairs, four = _PAIRS.search(text), _FOUR.search(text)
    found = pairs or four
    if found is None:
        return None
    numbers = [float(number) for number in found.groups()]
    system = ARIA if pairs else system_of(row)
    if max(numbers) <= 1 and any("." in number for number in found.groups()):
        in_shares = system is not None and system.whole == 1
        return as_shares(numbers, system if system is not None and in_shares else SYSTEMS["xyxy 0-1"], None)
    if system is None or (system.whole is not None and max(numbers) > 1000):
        return None
    return as_shares(numbers, system, _size(row))


def system_of(row: Row) -> System | None:
    """The coordinates of the right answer where it is four numbers: those that are named, else Aria's; None if unknown."""
    if "hw" in row.meta:  # the authors' own sets have the box in pixels beside an answer in their words
        return ARIA
    named = row.meta.get("coordinates")
    return ARIA if named is None else SYSTEMS.get(str(named))


def true_box(row: Row) -> Box | None:
    """The right box: that of the source, else what the right answer says."""
    numbers = row.meta.get("bbox")
    if isinstance(numbers, list) and len(numbers) == 4 and all(isinstance(one, int | float) for one in numbers):
        system = SYSTEMS["xyxy pixels"] if "hw" in row.meta else system_of(row)
        return None if system is None else as_shares(numbers, system, _size(row))
    return read_box(row.expected[0], row) if row.expected else None


def _size(row: Row) -> tuple[float, float] | None:
    """Width and height that pixels are counted in: the source's own, else those of the picture."""
    pair = row.meta.get("hw")
    height, width = (
        pair if isinstance(pair, list) and len(pair) == 2 else (row.meta.get("height"), row.meta.get("width"))
    )
    if isinstance(width, int | float) and isinstance(height, int | float) and width > 0 and height > 0:
        return float(width), float(height)
    return None if row.size is None else (float(row.size[0]), float(row.size[1]))


def score(row: Row, answer: str) -> Score:
    """1 from an overlap of half on, which `detail` has; 0 below it and for what is no box."""
    right, said = true_box(row), read_box(answer, row)
    if said is None or right is None:
        return Score(0.0, parsed=False, detail=0.0)
    shared = overlap(said, right)
    return Score(float(shared >= THRESHOLD - ROUNDING), read=", ".join(f"{share:.3f}" for share in said), detail=shared)


def _figures(rows: Sequence[Row], answers: Sequence[str], scores: Sequence[Score]) -> dict[str, float]:  # noqa: ARG001
    return {"mean_iou": sum(one.detail or 0.0 for one in scores) / len(scores)}


BOX = Metric(
    name="box",
    title="precision@1: the box overlaps the true one by an IoU of 0.5 or more",
    source="Yu et al. 2016 (RefCOCO), arXiv 1608.00272; coordinates as in rhymes-ai/Aria examples/refcoco/evaluation.py",
    score=score,
    fits=lambda row: true_box(row) is not None,
    figures=_figures,
)
