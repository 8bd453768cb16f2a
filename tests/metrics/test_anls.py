"""ANLS: distances counted by hand, some of them the textbook's (kitten and sitting 3, Saturday and Sunday 3, flaw and lawn 2).

Biten et al. 2019, equation 1: 1 - NL where NL, the distance by the longer length, is below 0.5, else 0; the best of
several answers.
"""

from __future__ import annotations

import pytest

from aria_finetune.metrics import METRICS, Row
from aria_finetune.metrics.anls import edit_distance

CASES = [
    (("abcd",), "abcd", 1.0),
    (("abcd",), "ABCD", 1.0),
    (("abcd",), "abce", 3 / 4),
    (("ab",), "ac", 0.0),  # NL is 0.5, which is not below it
    (("kitten",), "sitting", 4 / 7),
    (("Saturday",), "Sunday", 5 / 8),
    (("flaw",), "lawn", 0.0),
    (("intention",), "execution", 0.0),  # 5 of 9
    (("gumbo",), "gambol", 4 / 6),
    (("book",), "back", 0.0),
    (("",), "", 1.0),
    (("abc",), "", 0.0),
    (("",), "abc", 0.0),
    (("May 3, 1990",), "May 3 1990", 10 / 11),
    (("May 3, 1990", "3 May 1990"), "3 may 1990", 1.0),
    (("coca cola",), "Coca-Cola", 8 / 9),
    (("a b",), "  a   b ", 1.0),
    (("a b",), "ab", 2 / 3),
    (("$1,000",), "1000", 4 / 6),
    (("5%",), "5", 0.0),
    (("50%",), "50", 2 / 3),
    (("president",), "the president", 9 / 13),
    (("1990",), "1991", 3 / 4),
    (("10 kg",), "10kg", 4 / 5),
    (("Straße",), "Strasse", 5 / 7),
    (("itc limited",), "itc ltd", 7 / 11),  # "limited" to "ltd": four letters go
    (("cat", "hat", "cut"), "cup", 2 / 3),
    (("no",), "not at all", 0.0),
]


@pytest.mark.parametrize(("expected", "answer", "worth"), CASES)
def test_likeness(expected: tuple[str, ...], answer: str, worth: float) -> None:
    assert METRICS["anls"].score(Row(expected), answer).value == pytest.approx(worth)


def test_a_distance_is_the_same_both_ways() -> None:
    assert edit_distance("intention", "execution") == edit_distance("execution", "intention") == 5
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


def test_texts_of_very_different_length_are_not_counted_through() -> None:
    assert METRICS["anls"].score(Row(("x" * 1_000_000,)), "x" * 400_000).value == 0.0
