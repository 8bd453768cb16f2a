"""Intervals and tests against figures published for them, or worked out by hand; no library of statistics is asked."""

from __future__ import annotations

import math

import pytest

from aria_finetune.metrics import METRICS, Row, Score
from aria_finetune.metrics.intervals import bootstrap, newcombe, wilson
from aria_finetune.metrics.paired import mcnemar, sign_flips
from aria_finetune.metrics.summary import compare, summarise


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    turned = wilson(total - right, total)
    assert turned == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_at_its_ends() -> None:
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0
    assert wilson(64, 64)[0] == pytest.approx(64 / (64 + 1.959964**2), abs=1e-6)  # n / (n + z^2)


def test_the_interval_of_a_paired_difference() -> None:
    """Newcombe 1998, Statistics in Medicine 17:2635, table III: counts 36, 12, 2 and 0 by method 10."""
    assert newcombe(36, 2, 12, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert newcombe(36, 12, 2, 0) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def test_a_paired_difference_without_any_change() -> None:
    low, high = newcombe(30, 0, 0, 10)
    assert low == pytest.approx(-high)
    assert 0 < high < 0.1
    low, high = newcombe(0, 0, 64, 0)  # all wrong before, all right after
    assert 0.9 < low < high == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("better", "worse", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (9, 1, 2 * 11 / 1024),
        (8, 2, 2 * 56 / 1024),
        (7, 3, 2 * 176 / 1024),
        (15, 0, 2 / 32768),
        (121, 59, 4.434449e-06),  # the table of statsmodels' documentation, 101 121 59 33
    ],
)
def test_mcnemar(better: int, worse: int, p_value: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p_value, rel=1e-6)


def test_many_changes_do_not_overflow() -> None:
    assert 0 < mcnemar(30_000, 29_000) < 1e-3


DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        # Fisher 1935, section 21: of the 2^15 signs of Darwin's fifteen pairs of plants 1,726 give a sum as far from 0.
        (DARWIN, 1726 / 32768),
        ([], 1.0),
        ([0, 0, 0], 1.0),
        ([0.5], 1.0),
        ([1, 1, 1, 1, 1], 2 / 32),
        ([1, 1, 1, 1, 1, 0, 0, 0], 2 / 32),
        ([0.1, 0.2, 0.3], 2 / 8),
        ([0.3, -0.3], 1.0),
        ([3, 2, -1], 4 / 8),  # sums of 4 or more either way: 6, 4 and theirs below 0
    ],
)
def test_sign_flips(differences: list[float], p_value: float) -> None:
    assert sign_flips(differences) == pytest.approx(p_value)


def test_drawn_signs_come_near_all_of_them() -> None:
    """Darwin's pairs with two of a thousandth beside them are too many to try all; the answer is nearly the same."""
    p_value = sign_flips([*DARWIN, 0.001, -0.001])
    assert p_value == pytest.approx(1726 / 32768, abs=3 * math.sqrt(0.0527 * 0.9473 / 10_000))
    assert p_value == sign_flips([*DARWIN, 0.001, -0.001])
    assert sign_flips([1.0] * 100) == 1 / 10_001


def test_bootstrap() -> None:
    # Of two rows the mean is 0, 0.5 or 1 in one, two and one of four samples.
    assert bootstrap([0, 1]) == (0.0, 1.0)
    assert bootstrap([0.3] * 50) == pytest.approx((0.3, 0.3))
    assert bootstrap([0.7]) == (0.7, 0.7)
    values = [number / 99 for number in range(100)]
    deviation = math.sqrt(sum((value - 0.5) ** 2 for value in values) / 100)
    half = 1.959964 * deviation / 10
    assert bootstrap(values) == pytest.approx((0.5 - half, 0.5 + half), abs=0.003)
    assert bootstrap(values) == bootstrap(values)


def scores(*values: float) -> list[Score]:
    return [Score(value, parsed=value >= 0.1) for value in values]


def test_a_summary_of_right_and_wrong() -> None:
    told = summarise(METRICS["exact"], [Row(("a",))] * 29, ["a"] * 29, scores(1, *[0] * 28))
    assert (told["n"], told["correct"], told["unparsed"]) == (29, 1, 28)
    assert told["mean"] == pytest.approx(1 / 29)
    assert told["interval"] == pytest.approx([0.0061, 0.1718], abs=5e-5)
    assert "Wilson" in told["interval_method"]


def test_a_summary_of_graded_scores() -> None:
    told = summarise(METRICS["anls"], [Row(("a",))] * 2, ["a", "b"], scores(0, 1))
    assert (told["mean"], told["interval"], told["correct"]) == (0.5, [0.0, 1.0], 1)
    assert "bootstrap" in told["interval_method"]


def test_a_comparison_of_right_and_wrong() -> None:
    before = scores(*[1] * 36, *[1] * 2, *[0] * 12)
    after = scores(*[1] * 36, *[0] * 2, *[1] * 12)
    told = compare(METRICS["exact"], before, after)
    assert (told["n"], told["better"], told["worse"], told["difference"]) == (50, 12, 2, 0.2)
    assert told["interval"] == pytest.approx([0.0569, 0.3404], abs=5e-5)
    assert told["p_value"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert told["test"].startswith("McNemar")


def test_a_comparison_of_graded_scores() -> None:
    told = compare(METRICS["anls"], scores(0.1, 0.2, 0.3, 0.4, 0.5), scores(0.2, 0.3, 0.4, 0.5, 0.6))
    assert told["difference"] == pytest.approx(0.1)
    assert told["interval"] == pytest.approx([0.1, 0.1])
    assert told["p_value"] == pytest.approx(2 / 32)
    assert (told["better"], told["worse"]) == (5, 0)
