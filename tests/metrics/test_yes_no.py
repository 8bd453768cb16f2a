"""Yes and no: what an answer says at its beginning, in the words of NLVR2 (True, False), POPE and MME (yes, no)."""

from __future__ import annotations

import pytest

from aria_finetune.metrics import METRICS, Row

CASES = [
    ("True", "True", 1, True),
    ("True", "true.", 1, True),
    ("True", "Yes", 1, True),
    ("True", "yes, it is", 1, True),
    ("True", "Yes, there is no dog in either.", 1, True),
    ("True", "False", 0, True),
    ("True", "no", 0, True),
    ("False", "No, that is not true.", 1, True),
    ("False", "FALSE", 1, True),
    ("False", "**False**", 1, True),
    ("False", "The answer is: no", 1, True),
    ("False", "The statement is false.", 1, True),
    ("False", "This sentence is true.", 0, True),
    ("yes", "Yes\nBecause of the hat.", 1, True),
    ("yes", ' "yes"', 1, True),
    ("no", "Answer: No", 1, True),
    ("yes", "", 0, False),
    ("no", "", 0, False),
    ("no", "There is no dog.", 0, False),
    ("no", "not true", 0, False),
    ("no", "nothing", 0, False),
    ("yes", "yesterday", 0, False),
    ("yes", "yes or no", 0, False),
    ("no", "yes or no", 0, False),
    ("yes", "Yes/No", 0, False),
    ("yes", "yes and no", 0, False),
    ("yes", "True, false", 0, False),
    ("yes", "1", 0, False),
    ("yes", "maybe yes", 0, False),
    ("no", "No idea.", 0, False),
    ("no", "no idea", 0, False),
    ("no", "No one can tell; yes it is.", 0, False),
    ("no", "No-one can tell.", 0, False),
    ("no", "No way to tell", 0, False),
    ("no", "No answer", 0, False),
    ("no", "No doubt it is.", 0, False),
    ("no", "No. 5 on the left", 0, False),
    ("no", "The answer is no one's guess.", 0, False),
    ("yes", "Yes-men", 0, False),
    ("yes", '"Yes" or "no"', 0, False),
    ("yes", "Yes it is", 1, True),
    ("no", "No it isn't.", 1, True),
    ("no", "No because there is only one.", 1, True),
    ("no", "No - there are two", 1, True),
    ("no", "No. There are 5.", 1, True),
    ("no", "No (not in the left image)", 1, True),
    ("True", "True for both images", 1, True),
    ("yes", "Yes and it is big", 1, True),
    ("yes", "yes!", 1, True),
]


@pytest.mark.parametrize(("expected", "answer", "worth", "parsed"), CASES)
def test_yes_and_no(expected: str, answer: str, worth: float, parsed: bool) -> None:
    score = METRICS["yes_no"].score(Row((expected,)), answer)
    assert (score.value, score.parsed) == (worth, parsed)


def test_it_needs_one_of_the_two() -> None:
    fits = METRICS["yes_no"].fits
    assert fits(Row(("Yes",)))
    assert fits(Row(("True", "yes.")))
    assert not fits(Row(("yes", "no")))
    assert not fits(Row(("two",)))
    assert not fits(Row(("yes", "two")))
    assert not fits(Row(()))
