"""Moments: spans read from answers, and overlaps in seconds worked out by hand."""

from __future__ import annotations

import pytest

from aria_finetune.metrics import METRICS, Row
from aria_finetune.metrics.moments import overlap, read_windows

SPANS = [
    ("From 24.3 to 30.4 seconds.", [(24.3, 30.4)]),
    ("From 0 to 16 seconds and from 30 to 42 seconds.", [(0, 16), (30, 42)]),
    ("24.3 - 30.4", [(24.3, 30.4)]),
    ("24.3s-30.4s", [(24.3, 30.4)]),
    ("[24.3, 30.4]", [(24.3, 30.4)]),
    ("00:24 to 00:30", [(24, 30)]),
    ("[00:24] - [00:30]", [(24, 30)]),
    ("1:05\u20131:15.5", [(65, 75.5)]),
    ("0:01:05 until 0:02:00", [(65, 120)]),
    ("between 3 and 5 seconds", [(3, 5)]),
    ("It starts at 3 seconds.", []),
    ("", []),
    ("never", []),
    ("in 2014", []),
]


@pytest.mark.parametrize(("answer", "spans"), SPANS)
def test_spans_of_an_answer(answer: str, spans: list[tuple[float, float]]) -> None:
    assert read_windows(answer) == spans


CASES = [
    ([[10, 20]], "10 to 20", 1.0),
    ([[10, 20]], "From 10 to 20 seconds.", 1.0),
    ([[10, 20]], "0:10 - 0:20", 1.0),
    ([[10, 20]], "10 to 15", 0.5),
    ([[10, 20]], "10 to 30", 0.5),
    ([[10, 20]], "15 to 25", 5 / 15),
    ([[10, 20]], "0 to 40", 1 / 4),
    ([[10, 20]], "12 to 14", 2 / 10),
    ([[10, 20]], "20 to 30", 0.0),
    ([[10, 20]], "30 to 40", 0.0),
    ([[10, 20]], "20 to 10", 0.0),
    ([[24.3, 30.4]], "From 24.3 to 30.4 seconds.", 1.0),
    ([[24.3, 30.4]], "24 to 31", 6.1 / 7),
    ([[0, 16], [30, 42]], "From 0 to 16 seconds and from 30 to 42 seconds.", 1.0),
    ([[0, 16], [30, 42]], "0 to 16", 16 / 28),
    ([[0, 16], [30, 42]], "0 to 42", 28 / 42),
    ([[0, 16], [30, 42]], "30 to 42 and 0 to 16", 1.0),
    ([[0, 10], [5, 20]], "0 to 20", 1.0),
    ([[10, 20]], "10 to 14 and 12 to 20", 1.0),
    ([[10, 20]], "10 to 12 and 18 to 20", 4 / 10),
]


@pytest.mark.parametrize(("windows", "answer", "worth"), CASES)
def test_overlap_in_time(windows: list[list[float]], answer: str, worth: float) -> None:
    score = METRICS["moments"].score(Row(("x",), meta={"windows": windows}), answer)
    assert score.parsed
    assert score.value == pytest.approx(worth)


def test_what_names_no_span_is_wrong() -> None:
    score = METRICS["moments"].score(Row(("From 1 to 2 seconds.",)), "at the beginning")
    assert (score.value, score.parsed) == (0.0, False)


def test_the_right_answer_may_be_words_alone() -> None:
    assert METRICS["moments"].score(Row(("From 1 to 3 seconds.",)), "1 to 2").value == pytest.approx(0.5)
    assert METRICS["moments"].fits(Row(("From 1 to 3 seconds.",)))
    assert not METRICS["moments"].fits(Row(("soon",)))


@pytest.mark.parametrize("windows", ["soon", [], [1, 2], [[1]], [["a", "b"]], [{"from": 1}]])
def test_metadata_that_are_no_windows(windows: object) -> None:
    assert not METRICS["moments"].fits(Row(("soon",), meta={"windows": windows}))


def test_nothing_against_nothing() -> None:
    assert overlap([], []) == 0.0


def test_recalls() -> None:
    metric = METRICS["moments"]
    assert metric.figures is not None
    rows = [Row(("x",), meta={"windows": [[0, 10]]})] * 5
    answers = ["0 to 10", "0 to 7", "0 to 5", "0 to 3", "?"]
    scores = [metric.score(row, answer) for row, answer in zip(rows, answers, strict=True)]
    assert metric.figures(rows, answers, scores) == {"r@0.3": 0.8, "r@0.5": 0.6, "r@0.7": 0.4}
