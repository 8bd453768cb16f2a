"""Multiple choice: what an answer means, and that nothing is guessed where it means none of the options or two."""

from __future__ import annotations

import pytest

from aria_finetune.data_formats.building import choices
from aria_finetune.metrics import METRICS, Row
from aria_finetune.metrics.choice import options_of

ANIMALS = ["a cat", "a dog", "A hen.", "none of them"]
QUESTION = choices.question("Who sits there?", ANIMALS)

MEANT = [
    ("B", 1),
    ("b", 1),
    ("B.", 1),
    ("(B)", 1),
    ("(b).", 1),
    ("B)", 1),
    ("B:", 1),
    ("**B**", 1),
    ("a dog", 1),
    ("A dog.", 1),
    ("a hen", 2),
    ("B. a dog", 1),
    ("B) A DOG", 1),
    ("(C) a hen", 2),
    ("D, none of them", 3),
    ("B\nIt barks.", 1),
    ("B. It barks and has a tail.", 1),
    (
        "B. the parrot",
        1,
    ),  # words that are no option explain the letter: what is an explanation can't be told from what is not
    ("B. It is no cat.", 1),
    ("Answer: B", 1),
    ("The answer is B.", 1),
    ("The correct answer is (C).", 2),
    ("The best answer is: a cat", 0),
    ("Option D", 3),
    ("Therefore, the final answer is **A**", 0),
]
NOT_MEANT = [
    "",
    " ",
    "E",
    "a horse",
    "A or B",
    "A. or B.",
    "B. a cat",
    "B and C",
    "I think it is B",
    "dog",
    "A dog and a cat",
    "It is not B.",
    "5",
    "AB",
    "The answer is not known.",
]


@pytest.mark.parametrize(("answer", "option"), MEANT)
@pytest.mark.parametrize("right", range(4))
def test_answers_that_mean_an_option(answer: str, option: int, right: int) -> None:
    score = METRICS["choice"].score(Row(choices.accepted(right, ANIMALS), QUESTION), answer)
    assert (score.value, score.parsed, score.read) == (float(option == right), True, "ABCD"[option])


@pytest.mark.parametrize("answer", NOT_MEANT)
@pytest.mark.parametrize("right", range(4))
def test_answers_that_mean_none_are_wrong_whatever_is_right(answer: str, right: int) -> None:
    score = METRICS["choice"].score(Row(choices.accepted(right, ANIMALS), QUESTION), answer)
    assert (score.value, score.parsed) == (0.0, False)


def test_a_letter_that_is_the_text_of_another_option_says_nothing() -> None:
    letters = ["B", "A", "C"]
    row = Row(("C",), choices.question("Which letter?", letters))
    assert METRICS["choice"].score(row, "C").value == 1
    assert not METRICS["choice"].score(row, "B").parsed
    assert METRICS["choice"].score(row, "B. A").read == "B"


def test_options_are_those_that_were_kept_or_the_last_lettered_lines() -> None:
    assert options_of(Row((), QUESTION)) == ANIMALS
    assert options_of(Row((), "?", {"options": ["x", "y"]})) == ["x", "y"]
    above = "A. The sun is hot.\nB. The moon is not.\nWhich is true?\nA. the first\nB. both\nC. none\nAnswer with the letter."
    assert options_of(Row((), above)) == ["the first", "both", "none"]
    assert options_of(Row((), "(A) one\n(B) two")) == ["one", "two"]
    assert options_of(Row((), "A. only one")) == []
    assert options_of(Row((), QUESTION, {"options": [str(number) for number in range(27)]})) == ANIMALS
    assert options_of(Row((), QUESTION, {"options": {"A": "x"}})) == ANIMALS
    assert options_of(Row((), "What is in the picture?")) == []


def test_it_needs_an_option_that_is_right() -> None:
    fits = METRICS["choice"].fits
    assert fits(Row(("B",), QUESTION))
    assert not fits(Row(("a horse",), QUESTION))
    assert not fits(Row(("a cat", "a dog"), QUESTION))
    assert not fits(Row(("B",), "Who?"))
    assert not fits(Row((), QUESTION))
