"""Boxes: overlaps worked out by hand, in every system of coordinates that answers come in."""

from __future__ import annotations

from typing import Any

import pytest

from aria_finetune.metrics import METRICS, Row
from aria_finetune.metrics.boxes import SYSTEMS, as_shares, overlap

WHOLE = (0.0, 0.0, 1.0, 1.0)
LEFT = (0.0, 0.0, 0.5, 1.0)

OVERLAPS = [
    (WHOLE, WHOLE, 1.0),
    (WHOLE, LEFT, 1 / 2),
    (LEFT, WHOLE, 1 / 2),
    (LEFT, (0.5, 0.0, 1.0, 1.0), 0.0),  # they touch
    ((0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0), 0.0),
    ((0.0, 0.0, 0.2, 0.2), (0.1, 0.1, 0.3, 0.3), 1 / 7),  # 0.01 of 0.04 + 0.04 - 0.01
    ((0.0, 0.0, 0.2, 0.2), (0.1, 0.0, 0.3, 0.2), 1 / 3),
    (WHOLE, (0.25, 0.25, 0.75, 0.75), 1 / 4),
    (WHOLE, (0.5, 0.5, 0.2, 0.2), 0.0),  # ends before it begins
    ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0.0),
]


@pytest.mark.parametrize(("first", "second", "shared"), OVERLAPS)
def test_overlap(first: Any, second: Any, shared: float) -> None:
    assert overlap(first, second) == pytest.approx(shared)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("xywh pixels", (64, 120, 160, 240)),
        ("xyxy pixels", (64, 120, 224, 360)),
        ("xywh 0-1", (0.1, 0.25, 0.25, 0.5)),
        ("xyxy 0-1", (0.1, 0.25, 0.35, 0.75)),
        ("xyxy 0-999", (99.9, 249.75, 349.65, 749.25)),
        ("xyxy 0-1000", (100, 250, 350, 750)),
    ],
)
def test_one_box_in_every_system(name: str, numbers: tuple[float, ...]) -> None:
    assert as_shares(numbers, SYSTEMS[name], (640, 480)) == pytest.approx((0.1, 0.25, 0.35, 0.75))


# RefCOCO as it is converted: left, top, width, height in a picture of 640 x 480. The box is 0.1-0.35 across, 0.25-0.75 down.
CONVERTED = Row(
    ("[64.0, 120.0, 160.0, 240.0]",),
    "the dog",
    {"bbox": [64.0, 120.0, 160.0, 240.0], "width": 640, "height": 480, "coordinates": "xywh pixels"},
    "refcoco",
)
# The same as a data set of the authors has it: corners in pixels, height before width.
AUTHORS = Row(("(100,250),(350,749)",), "the dog", {"bbox": [64, 120, 224, 360], "hw": [480, 640]}, "aria")
# The right answer in Aria's words alone.
WORDS = Row(("(100,250),(350,749)",), "the dog")

CASES = [
    (CONVERTED, "(100,250),(350,749)", True, 1.0, 0.01),
    (CONVERTED, "( 100, 250 ) , ( 350, 749 )", True, 1.0, 0.01),
    (CONVERTED, "<box>(100,250),(350,749)</box>", True, 1.0, 0.01),
    (CONVERTED, "It is at (100,250),(350,749).", True, 1.0, 0.01),
    (CONVERTED, "[64, 120, 160, 240]", True, 1.0, 1e-9),
    (CONVERTED, "64,120,160,240", True, 1.0, 1e-9),
    (CONVERTED, "[0.1, 0.25, 0.35, 0.75]", True, 1.0, 1e-9),
    (CONVERTED, "(0.1,0.25),(0.35,0.75)", True, 1.0, 1e-9),
    # Half as wide: half the area, and an overlap of a half counts.
    (CONVERTED, "[64, 120, 80, 240]", True, 0.5, 1e-9),
    (CONVERTED, "[64, 120, 79, 240]", False, 79 / 160, 1e-9),
    # Twice as wide.
    (CONVERTED, "[64, 120, 320, 240]", True, 0.5, 1e-9),
    (CONVERTED, "[64, 120, 321, 240]", False, 160 / 321, 1e-9),
    # Corners where the right answer has sides: 64-224 is not 64 and 224 wide. 160 x 240 of 224 x 360.
    (CONVERTED, "[64, 120, 224, 360]", False, 160 * 240 / (224 * 360), 1e-9),
    (CONVERTED, "(500,250),(750,749)", False, 0.0, 1e-9),
    (CONVERTED, "(350,749),(100,250)", False, 0.0, 1e-9),
    (AUTHORS, "(100,250),(350,749)", True, 1.0, 0.01),
    (AUTHORS, "(0.1,0.25),(0.35,0.75)", True, 1.0, 1e-9),
    (AUTHORS, "(100,250),(224,749)", False, 0.496, 0.01),  # 124 of 250 thousandths across
    (WORDS, "(100,250),(350,749)", True, 1.0, 1e-9),
    (WORDS, "(100,250),(600,749)", True, 0.5, 1e-9),
    (WORDS, "(100,250),(601,749)", False, 250 / 501, 1e-9),
    (WORDS, "[100, 250, 350, 749]", True, 1.0, 1e-9),
    (WORDS, "(100,250),(350,749),(0,0),(1,1)", True, 1.0, 1e-9),  # the first one counts
]


@pytest.mark.parametrize(("row", "answer", "right", "shared", "tolerance"), CASES)
def test_boxes(row: Row, answer: str, right: bool, shared: float, tolerance: float) -> None:
    score = METRICS["box"].score(row, answer)
    assert score.parsed
    assert score.detail == pytest.approx(shared, abs=tolerance)
    assert score.value == float(right)


@pytest.mark.parametrize(
    "answer", ["", "the dog", "(100,250)", "[1, 2, 3]", "(1,2),(3)", "(100,250),(3500,749)", "1.2.3.4"]
)
def test_what_is_no_box_is_wrong(answer: str) -> None:
    score = METRICS["box"].score(WORDS, answer)
    assert (score.value, score.parsed) == (0.0, False)


def test_pixels_are_those_of_the_picture_where_the_source_says_none() -> None:
    row = Row(("[64, 120, 160, 240]",), meta={"coordinates": "xywh pixels"}, size=(640, 480))
    assert METRICS["box"].score(row, "(100,250),(350,749)").value == 1
    assert not METRICS["box"].fits(Row(("[64, 120, 160, 240]",), meta={"coordinates": "xywh pixels"}))


@pytest.mark.parametrize(
    ("answer", "shared"),
    [
        ("[0.5, 0.5, 0.2, 0.4]", 1.0),
        ("0.5, 0.5, 0.1, 0.4", 1 / 2),  # half as wide
        ("[0.5, 0.5, 0.7, 0.9]", 0.08 / 0.63),  # corners are read as sides, which makes it larger
        ("(0.5,0.5),(0.7,0.9)", 1.0),  # points are corners everywhere
        ("(499.5,499.5),(699.3,899.1)", 1.0),
    ],
)
def test_shares_with_sides_are_read_as_the_right_answer_is_written(answer: str, shared: float) -> None:
    row = Row(
        ("[0.5, 0.5, 0.2, 0.4]",), meta={"bbox": [0.5, 0.5, 0.2, 0.4], "coordinates": "xywh 0-1"}, size=(640, 480)
    )
    said = METRICS["box"].score(row, answer).detail
    assert said == pytest.approx(shared, abs=1e-9)
    assert METRICS["box"].score(Row(row.expected, meta={"coordinates": "xywh 0-1"}), answer).detail == said


def test_mean_overlap_of_all() -> None:
    rows, answers = [WORDS] * 3, ["(100,250),(350,749)", "(100,250),(600,749)", "no"]
    metric = METRICS["box"]
    assert metric.figures is not None
    scores = [metric.score(row, answer) for row, answer in zip(rows, answers, strict=True)]
    assert metric.figures(rows, answers, scores) == {"mean_iou": pytest.approx(0.5)}


def test_coordinates_that_are_not_known_are_not_guessed_at() -> None:
    row = Row(("[64, 120, 160, 240]",), meta={"bbox": [64, 120, 160, 240], "coordinates": "yxyx"}, size=(640, 480))
    assert not METRICS["box"].fits(row)
