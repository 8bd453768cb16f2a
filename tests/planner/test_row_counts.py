"""Histogram and quantiles of token counts, against counting by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aria_finetune.planner.rows import Bin, histogram, quantiles


def test_bins_double() -> None:
    assert histogram([1, 2, 3, 4, 5, 8, 9, 17]) == [
        Bin(0, 1, 1),
        Bin(2, 2, 1),
        Bin(3, 4, 2),
        Bin(5, 8, 2),
        Bin(9, 16, 1),
        Bin(17, 32, 1),
    ]


def test_no_rows() -> None:
    assert histogram([]) == []
    assert quantiles([]) == {}


@given(st.lists(st.integers(0, 10_000), min_size=1))
def test_every_row_is_in_one_bin(tokens: list[int]) -> None:
    bins = histogram(tokens)
    assert sum(part.rows for part in bins) == len(tokens)
    for part in bins:
        assert part.rows == sum(part.first <= count <= part.last for count in tokens)


def test_quantiles_of_a_hundred() -> None:
    found = quantiles(list(range(1, 101)))
    assert found == {"least": 1, "median": 50, "p90": 90, "p99": 99, "most": 100}
