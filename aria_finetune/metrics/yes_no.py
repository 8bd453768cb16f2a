"""Yes or no, true or false, as NLVR2, POPE and MME ask it; an answer that is neither, or both, is wrong."""

from __future__ import annotations

import re

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score

_WORDS = {"yes": True, "true": True, "no": False, "false": False}
_WORD = "(yes|no|true|false)"
# "No idea", "No one", "No doubt", "No. 5" and "no-one" begin with the word and say something else.
_AFTER = (
    r"(?!-\w|['\u2019]\w|\.[ \t]*\d)"
    r"(?=\s*(?:$|[^\w\s])|\s*\n"
    r"|\s+(?:it|he|she|they|there|this|that|these|those|the|i|because|since|as|but|and|for|in)\b)"
)
_FIRST = re.compile(
    r"\W*(?:(?:the|this)\s+)?(?:(?:answer|statement|sentence|claim)\s*(?:is\s*:?|:)\s*)?"
    rf"{_WORD}\b(?![\s\"'*]*(?:/|,|\bor\b|\band\b)[\s\"'*]*{_WORD}\b){_AFTER}",
    re.IGNORECASE,
)


def verdict(answer: str) -> bool | None:
    """What an answer says at its beginning; None if it is neither yes nor no.

    The word stands alone, before punctuation, or before what begins a sentence or gives a reason (`it is`, `because`).
    """
    found = _FIRST.match(answer)
    return _WORDS[found[1].lower()] if found else None


def expected_verdict(row: Row) -> bool | None:
    """What the accepted answers say, None if they are not all the same yes or no."""
    found = {_WORDS.get(expected.strip().rstrip(".").lower()) for expected in row.expected}
    return found.pop() if len(found) == 1 else None


def score(row: Row, answer: str) -> Score:
    """1 for the right one of the two, 0 for the other and for what is neither."""
    said = verdict(answer)
    if said is None:
        return Score(0.0, parsed=False)
    return Score(float(said == expected_verdict(row)), read="yes" if said else "no")


YES_NO = Metric(
    name="yes_no",
    title="accuracy of yes and no, true and false; what is neither is wrong",
    source="Suhr et al. 2019 (NLVR2), arXiv 1811.00491",
    score=score,
    fits=lambda row: expected_verdict(row) is not None,
)
