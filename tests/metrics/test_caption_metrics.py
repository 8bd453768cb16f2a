"""Captions: BLEU and chrF by hand from their papers' formulas, on texts short enough to count."""

from __future__ import annotations

import math

import pytest

from aria_finetune.metrics import METRICS, Row, Score

CAPTIONS = METRICS["captions"]


def chrf(expected: str, answer: str) -> float:
    """Popović 2015: F of character n-grams, n from 1 to 6 where both have any, recall twice as heavy (beta 2)."""
    first, second = ("".join(text.lower().split()) for text in (expected, answer))
    shares = []
    for size in range(1, 7):
        grams = [[text[at : at + size] for at in range(len(text) - size + 1)] for text in (first, second)]
        if not all(grams):
            continue
        right = sum(min(grams[0].count(gram), grams[1].count(gram)) for gram in set(grams[1]))
        shares.append((right / len(grams[1]), right / len(grams[0])))
    if not shares:
        return 0.0
    precision, recall = (sum(column) / len(shares) for column in zip(*shares, strict=True))
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


PAIRS = [
    ("a dog runs", "a dog runs"),
    ("a dog runs", "A Dog Runs"),
    ("a dog runs", "a dog"),
    ("a dog", "a dog runs"),
    ("a dog runs", "a cat sleeps"),
    ("a dog runs after a ball", "a dog runs after the ball"),
    ("two dogs", "2 dogs"),
    ("a red car.", "a red car"),
    ("a red car", "the red car"),
    ("a man rides a bicycle", "a bicycle rides a man"),
    ("people on a beach at night", "night at a beach"),
    ("50% off", "50 % off"),
    ("10 kg of rice", "ten kilograms of rice"),
    ("abc", "xyz"),
    ("abcdef", "abcdef"),
    ("abcdefg", "abcdef"),
    ("an old house", "old house"),
    ("it's raining", "it is raining"),
    ("a cat, a dog", "a cat and a dog"),
    ("ein Haus", "ein haus!"),
]


@pytest.mark.parametrize(("expected", "answer"), PAIRS)
def test_chrf_of_one_caption(expected: str, answer: str) -> None:
    assert CAPTIONS.score(Row((expected,)), answer).value == pytest.approx(chrf(expected, answer), abs=1e-6)


def test_an_empty_caption_is_worth_nothing() -> None:
    assert CAPTIONS.score(Row(("a dog",)), "").value == 0.0


def test_of_several_captions_the_nearest_counts() -> None:
    row = Row(("a cat on a mat", "a dog runs", "a bird"))
    assert CAPTIONS.score(row, "a dog runs").value == pytest.approx(1)


BLEU_CASES = [
    # Papineni et al. 2002: the geometric mean of the precisions of 1- to 4-grams, times the penalty for shortness.
    (["the cat sat on the mat"], [["the cat sat on the mat"]], 1.0),
    (["The Cat sat on the mat"], [["the cat sat on the mat"]], 1.0),
    # 5 of 6 words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 fours.
    (["the cat sat on the rug"], [["the cat sat on the mat"]], (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25),
    # All of it right and five words of six: a penalty of exp(1 - 6/5).
    (["the cat sat on the"], [["the cat sat on the mat"]], math.exp(1 - 6 / 5)),
    # The second caption is the nearer in length and has every word.
    (["a dog runs over there"], [["nothing like it at all here", "a dog runs over there"]], 1.0),
    # Rows with one and with two captions together: 6 + 4 words, 5 + 3 pairs, 4 + 2 triples, 3 + 1 fours, all right.
    (["the cat sat on the mat", "a dog runs there"], [["the cat sat on the mat"], ["x", "a dog runs there"]], 1.0),
]


@pytest.mark.parametrize(("answers", "expected", "worth"), BLEU_CASES)
def test_bleu_of_all_captions(answers: list[str], expected: list[list[str]], worth: float) -> None:
    assert CAPTIONS.figures is not None
    rows = [Row(tuple(one)) for one in expected]
    figures = CAPTIONS.figures(rows, answers, [Score(0.0)] * len(rows))
    assert figures["bleu"] == pytest.approx(worth)
    assert 0 <= figures["chrf"] <= 1
