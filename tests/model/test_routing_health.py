"""Entropy, dead and overloaded experts, and groups that take over, on counts worked out by hand."""

from __future__ import annotations

import math

import pytest

from aria_finetune.model.routing_health import dead, dominant_group, enough, entropy, overloaded


def test_entropy_is_one_for_even_use_and_zero_for_one_expert() -> None:
    assert entropy([7] * 64) == pytest.approx(1)
    assert entropy([0, 9, 0, 0]) == 0
    # Shares 1/2, 1/4, 1/4 and 0: 1.5 bits of 2.
    assert entropy([2, 1, 1, 0]) == pytest.approx(0.75)
    assert entropy([2, 1, 1, 0]) == pytest.approx(1.5 * math.log(2) / math.log(4))


def test_no_choices_have_no_entropy() -> None:
    assert entropy([0, 0]) == 0
    assert overloaded([0, 0]) == []
    assert dominant_group([0] * 8, 2) is None


def test_an_expert_is_dead_only_where_that_is_no_chance() -> None:
    assert dead([0, 5, 5, 0]) == [], "10 choices of 4 experts"
    assert not enough([0, 5, 5, 0])
    assert dead([0, 32, 31, 1]) == [0]


def test_overloaded_from_four_times_the_even_share() -> None:
    assert overloaded([4, 4, 4, 4, 4, 4, 4, 4]) == []
    assert overloaded([16, 4, 4, 4, 4, 0, 0, 0]) == [0]
    assert overloaded([15, 5, 4, 4, 4, 0, 0, 0]) == []


def test_a_group_takes_over_with_half_of_all_choices() -> None:
    load = [0, 0, 30, 30, 20, 20, 10, 10]
    assert dominant_group(load, 2) == 1
    assert dominant_group([0, 0, 29, 30, 20, 20, 10, 11], 2) is None
    assert dominant_group(load, 4) is None, "of two groups one always has half"
