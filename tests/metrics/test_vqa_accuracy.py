"""VQA accuracy: the published rules applied by hand, and what so many of ten people agreeing is worth.

Rules: visualqa.org/evaluation.html. Of ten answers of which m are the model's, leaving each out in turn and taking
min(1, others that agree / 3) gives 0, 0.3, 0.6, 0.9 and from four on 1.
"""

from __future__ import annotations

import pytest

from aria_finetune.metrics import METRICS, Row
from aria_finetune.metrics.vqa import normalise

FORMS = [
    ("dog", "dog"),
    ("The dog", "dog"),
    ("a red car.", "red car"),
    ("An apple", "apple"),
    ("two", "2"),
    ("None", "0"),
    ("Ten", "10"),
    ("eleven", "eleven"),
    ("one and a half", "1 and half"),
    ("dont know", "don't know"),
    ("Isnt", "isn't"),
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("yall'll", "y'all'll"),
    ("5 oclock", "5 o'clock"),
    ("somebody'd", "somebodyd"),
    ("it's", "it's"),
    ("its", "its"),
    ("yes!", "yes"),
    ("red/blue", "red blue"),
    ("red, blue", "red blue"),
    ("red,blue", "red blue"),
    ("t-shirt", "t shirt"),
    ("t -shirt", "t shirt"),
    ("(maybe)", "maybe"),
    ("1,000", "1000"),
    ("1,000-2,000", "10002000"),
    ("3.5", "3.5"),
    (".5", ".5"),
    ("3.", "3"),
    ("U.S.", "us"),
    ("10:30 p.m.", "10:30 pm"),
    ("$5", "$5"),
    ("50%", "50%"),
    ("5 kg", "5 kg"),
    ("", ""),
    ("the", ""),
    ("?!", ""),
    ("\ttwo\ndogs ", "2 dogs"),
]


@pytest.mark.parametrize(("answer", "compared"), FORMS)
def test_the_form_in_which_answers_are_compared(answer: str, compared: str) -> None:
    assert normalise(answer) == compared


@pytest.mark.parametrize(("agreeing", "worth"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (9, 1), (10, 1)])
def test_what_agreement_is_worth(agreeing: int, worth: float) -> None:
    people = ("ball",) * agreeing + ("toy",) * (10 - agreeing)
    assert METRICS["vqa"].score(Row(people), "a ball.").value == pytest.approx(worth)


CASES = [
    # One of ten people in another wording: all ten say 2.
    (("two",) * 9 + ("2",), "Two.", 1.0),
    # The four that agree do so once brought to one form.
    (("yes", "Yes", "yes.", "YES!", *("no",) * 6), "yes", 1.0),
    # Three of ten.
    (("a", "red", "Red", "the red", *("blue",) * 6), "red", 0.9),
    # An empty answer agrees with people who said nothing: two of ten.
    (("", "the", *("cat",) * 8), "", 0.6),
    (("cat",) * 10, "", 0.0),
    (("cat",) * 10, "cats", 0.0),
    (("50%",) * 10, "50", 0.0),
    (("1,000",) * 10, "1000", 1.0),
    (("dont",) * 10, "don't", 1.0),
    # Five people: leaving one of three that agree out leaves two, leaving one of the others leaves three.
    (("x", "x", "x", "y", "y"), "x", (3 * 2 / 3 + 2) / 5),
]


@pytest.mark.parametrize(("people", "answer", "worth"), CASES)
def test_answers_against_those_of_people(people: tuple[str, ...], answer: str, worth: float) -> None:
    assert METRICS["vqa"].score(Row(people), answer).value == pytest.approx(worth)


def test_it_needs_several_people() -> None:
    assert not METRICS["vqa"].fits(Row(("x", "x", "y")))
    assert METRICS["vqa"].fits(Row(("x", "x", "y", "z")))
