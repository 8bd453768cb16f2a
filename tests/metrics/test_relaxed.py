"""Relaxed accuracy: the rule of ChartQA's paper (section 5.1) and of the code that computes it, by hand.

A right answer that is a number is met within 5 % of it, both ends included; `12%` is 0.12 on either side; anything else,
0 among it, word for word without case.
"""

from __future__ import annotations

import pytest

from aria_finetune.metrics import METRICS, Row

CASES = [
    (("14",), "14", True),
    (("14",), " 14 ", True),
    (("14",), "14.0", True),
    (("14",), "14.", True),
    (("14",), "14.6", True),  # 4.3 %
    (("14",), "14.8", False),  # 5.7 %
    (("14",), "13.4", True),
    (("14",), "13.2", False),
    (("100",), "105", True),
    (("100",), "95", True),
    (("100",), "105.1", False),
    (("0",), "0", True),
    (("0",), "0.0", False),
    (("0",), "0.01", False),
    (("12%",), "12%", True),
    (("12%",), "12.5%", True),
    (("12%",), "12.7%", False),
    (("12%",), "0.12", True),
    (("12%",), "12", False),
    (("12",), "12%", False),
    (("1,000",), "1,000", True),
    (("1,000",), "1000", False),
    (("1e3",), "1000", True),
    (("-5",), "-5.2", True),
    (("-5",), "5", False),
    (("+3",), "3", True),
    ((".5",), "0.5", True),
    (("2014",), "2000", True),  # years are numbers
    (("2014",), "1900", False),
    (("Yes",), "yes", True),
    (("Yes",), "Yes.", False),
    (("Blue",), "dark blue", False),
    (("the USA",), "USA", False),
    (("3.5",), "3.5 kg", False),
    (("3.5 kg",), "3.5 KG", True),
    (("7",), "seven", False),
    (("",), "", True),
    (("14",), "", False),
    (("nan",), "NaN", True),
    (("2014", "2015 and 2016"), "2015 and 2016", True),
    (("10", "20"), "20.5", True),
]


@pytest.mark.parametrize(("expected", "answer", "right"), CASES)
def test_relaxed_accuracy(expected: tuple[str, ...], answer: str, right: bool) -> None:
    assert METRICS["relaxed"].score(Row(expected), answer).value == float(right)
