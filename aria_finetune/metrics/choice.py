"""Multiple choice: the letter or the text of an option; an answer that is neither, or two, is wrong and never guessed at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from aria_finetune.metrics.exact import normalise
from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score

_OPTION_LINE = re.compile(r"\(?([A-Z])(?:\)[.:]?|[.:])\s+(.*)")
_OPENING = re.compile(
    r"(?:so,?\s+|therefore,?\s+)?(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:answer|option|choice)\s*"
    r"(?:is\s*:?\s+|:\s*|\s)(?:option\s+)?",
    re.IGNORECASE,
)
_LETTERED = re.compile(r"\(?([A-Za-z])(?:\)[.:,]?|[.:,]|(?=\s*\n)|$)\s*(.*)", re.DOTALL)
_ANOTHER = re.compile(r"(?<!\w)\(?([A-Z])(?:[.):]|\s*$)")


def options_of(row: Row) -> list[str]:
    """The options of a row: those the converter kept, else the lines `A. ...` that end the question; none if neither."""
    kept = row.meta.get("options")
    if isinstance(kept, list) and 1 < len(kept) <= len(ascii_uppercase) and all(isinstance(one, str) for one in kept):
        return kept
    return _in_lines(row.question)


def _in_lines(question: str) -> list[str]:
    options: list[str] = []
    for line in question.split("\n"):
        found = _OPTION_LINE.fullmatch(line.strip())
        if found and found[1] == "A":  # statements above the options may be lettered too: the last ones count
            options = [found[2]]
        elif found and options and found[1] == ascii_uppercase[len(options) % len(ascii_uppercase)]:
            options.append(found[2])
    return options if 1 < len(options) <= len(ascii_uppercase) else []


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """Which option an answer means, counted from 0; None where it can't be told."""
    text = answer.strip().strip("*").strip()
    found = _named(text, options)
    if not found:
        opening = _OPENING.match(text)
        found = _named(text[opening.end() :].strip("*"), options) if opening else set()
    return found.pop() if len(found) == 1 else None


def _named(text: str, options: Sequence[str]) -> set[int]:
    """The options that a text names by its words, and by a letter before them.

    Words behind a letter that are no option, and name none by its letter, are an explanation and change nothing.
    """
    found = {number for number, option in enumerate(options) if normalise(option) == normalise(text)}
    lettered = _LETTERED.fullmatch(text)
    index = ascii_uppercase.index(lettered[1].upper()) if lettered else len(options)
    if not lettered or index >= len(options):
        return found
    rest = lettered[2].strip()
    others = {number for number, option in enumerate(options) if rest and normalise(option) == normalise(rest)}
    named = {ascii_uppercase.index(letter) for letter in _ANOTHER.findall(rest)}
    found.add(index)
    if index not in others:  # "A. a cat" says one thing, even where another option is "a cat" too
        found |= others | {number for number in named if number < len(options)}
    return found


def right_option(row: Row) -> int | None:
    """Which option is right, counted from 0; None where the accepted answers don't say."""
    options = options_of(row)
    found = {chosen(expected, options) for expected in row.expected} - {None}
    return found.pop() if len(found) == 1 else None


def score(row: Row, answer: str) -> Score:
    """1 for the right option, 0 for another and for what is no option."""
    picked = chosen(answer, options_of(row))
    if picked is None:
        return Score(0.0, parsed=False)
    return Score(float(picked == right_option(row)), read=ascii_uppercase[picked])


CHOICE = Metric(
    name="choice",
    title="multiple choice: the letter or the text of an option; what is neither is wrong",
    source="Hendrycks et al. 2021 (MMLU), arXiv 2009.03300; no answer is drawn at random in place of one not understood",
    score=score,
    fits=lambda row: right_option(row) is not None,
)
