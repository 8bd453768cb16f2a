"""VQA accuracy: an answer is right as far as three people gave it, averaged over all choices of nine of the ten.

Antol et al. 2015 (arXiv 1505.00468) and the evaluation code beside VQA v2 (visualqa.org/evaluation.html). Answers of
people are brought to the same form as those of the model, as TextVQA and VizWiz, whose answers are raw, need it.
"""

from __future__ import annotations

import re

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score

AGREEING = 3
"""People who must have given an answer for it to be wholly right."""

FEWEST = AGREEING + 1
"""Answers without which no choice of all but one could hold three that agree."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTED = [
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "couldn't've",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hadn't've",
    "hasn't",
    "haven't",
    "he'd",
    "he'd've",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "isn't",
    "it'd",
    "it'd've",
    "it'll",
    "ma'am",
    "mightn't",
    "mightn't've",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "'ow's'at",
    "shan't",
    "she'd've",
    "should've",
    "shouldn't",
    "shouldn't've",
    "somebody'd've",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'd've",
    "someone'll",
    "someone's",
    "something'd",
    "something'd've",
    "something'll",
    "that's",
    "there'd",
    "there'd've",
    "there're",
    "there's",
    "they'd",
    "they'd've",
    "they'll",
    "they're",
    "they've",
    "'twas",
    "wasn't",
    "we'd've",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'd've",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "wouldn't've",
    "y'all",
    "y'all'll",
    "y'all'd've",
    "you'd",
    "you'd've",
    "you'll",
    "you're",
    "you've",
]


def _missing_one(word: str) -> list[str]:
    """The word with one of its apostrophes left out, for each of them."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {wrong: word for word in _CONTRACTED for wrong in _missing_one(word)}
# The published table has this one the other way round.
_CONTRACTIONS["somebody'd"] = "somebodyd"


def normalise(answer: str) -> str:
    """An answer as the published evaluation compares it: punctuation, numbers, articles, contractions."""
    words = (_NUMBERS.get(word, word) for word in _without_punctuation(answer).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(answer: str) -> str:
    """A mark beside a space goes, one between letters becomes a space; in `1,000` and what stands with it all marks go."""
    given = answer.replace("\n", " ").replace("\t", " ").strip()
    text, joined = given, _DIGITS_WITH_COMMA.search(given) is not None
    for mark in _PUNCTUATION:
        goes = joined or f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if goes else " ")
    return _FULL_STOP.sub("", text)


def accuracy(answers: list[str], answer: str) -> float:
    """The mean of min(1, agreeing / 3) over all ways to leave one of `answers` out; all in their compared form."""
    agreeing = answers.count(answer)
    others = [agreeing - (one == answer) for one in answers]
    return sum(min(1.0, count / AGREEING) for count in others) / len(others)


def score(row: Row, answer: str) -> Score:
    """VQA accuracy of an answer."""
    said = normalise(answer)
    return Score(accuracy([normalise(one) for one in row.expected], said), read=said)


VQA = Metric(
    name="vqa",
    title="VQA accuracy: min(1, people who gave the answer / 3), averaged over leaving each person out",
    source="Antol et al. 2015, arXiv 1505.00468; visualqa.org/evaluation.html",
    score=score,
    fits=lambda row: len(row.expected) >= FEWEST,
    binary=False,
)
