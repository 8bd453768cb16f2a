"""Exact match, by cases worked out by hand."""

from __future__ import annotations

import pytest

from aria_finetune.metrics import METRICS, Row
from aria_finetune.metrics.exact import normalise

CASES = [
    (("warm",), "warm", True),
    (("warm",), "Warm", True),
    (("warm",), "WARM.", True),
    (("A cat.",), "  a  cat ", True),
    (("cool",), "warm", False),
    (("two", "2"), "2.", True),
    (("two", "2"), "two", True),
    (("two",), "2", False),
    (("warm",), "warm and cool", False),
    (("warm and cool",), "warm", False),
    (("",), "", True),
    (("",), " ", True),
    (("",), ".", True),
    (("warm",), "", False),
    (("a cat",), "cat", False),
    (("5%",), "5 %", False),
    (("5 kg",), "5 kg.", True),
    (("1,000",), "1000", False),
    (("1.5",), "1.5", True),
    (("1.5",), "1.5.", True),
    (("Straße",), "STRASSE", True),
    (("U.S.",), "u.s", True),
    (("yes",), "yes!", False),
    (("a\nb",), "a b", True),
    (("wait...",), "wait..", False),
]


@pytest.mark.parametrize(("expected", "answer", "right"), CASES)
def test_exact_match(expected: tuple[str, ...], answer: str, right: bool) -> None:
    score = METRICS["exact"].score(Row(expected), answer)
    assert (score.value, score.parsed) == (float(right), True)


def test_how_an_answer_is_compared() -> None:
    assert normalise("  The  Straße. ") == "the strasse"
