"""MMLongBench-Doc: its rules for each kind of answer, by hand from section 3 of the paper and the text of `eval_score.py`."""

from __future__ import annotations

import pytest

from aria_finetune.metrics import METRICS, Row, Score

CASES = [
    # Whole numbers: the same once their fraction is cut off.
    ("Int", "5", "5", 1.0),
    ("Int", "5", "5.0", 1.0),
    ("Int", "5", "5.9", 1.0),
    ("Int", "5", "6", 0.0),
    ("Int", "5", "five", 0.0),
    ("Int", "5", "", 0.0),
    ("Int", "1200", "1,200", 0.0),
    # Decimals: within 1 %, also as a percentage or as its hundredth, without signs of currency and percent.
    ("Float", "12.5", "12.5", 1.0),
    ("Float", "12.5", "12.5%", 1.0),
    ("Float", "12.5%", "0.125", 1.0),
    ("Float", "0.125", "12.5%", 1.0),
    ("Float", "12.5", "12.6", 1.0),  # 0.8 %
    ("Float", "12.5", "12.7", 0.0),  # 1.6 %
    ("Float", "$3.20", "3.2", 1.0),
    ("Float", "3.20", "3.2 million", 0.0),
    ("Float", "0.001", "0.00104", 1.0),  # the same to three digits
    ("Float", "0.001", "0.004", 0.0),
    ("Float", "12.5", "", 0.0),
    # Texts: one minus distance by longer length, nothing up to a half.
    ("Str", "Blue", "blue", 1.0),
    ("Str", "blue (dark)", "blue", 1.0),
    ("Str", '"blue"', "blue", 1.0),
    ("Str", "kitten", "sitting", 4 / 7),
    ("Str", "ab", "ac", 0.0),
    ("Str", "the Pew Center", "Pew Center", 10 / 14),
    ("Str", "", "", 1.0),
    ("Str", "blue", "", 0.0),
    # Nothing but the whole for addresses, files, pages, times, dates and telephone numbers.
    ("Str", "https://a.org/b", "https://a.org/c", 0.0),
    ("Str", "https://a.org/b", "https://a.org/b", 1.0),
    ("Str", "main.py", "mail.py", 0.0),
    ("Str", "page 12", "page 13", 0.0),
    ("Str", "9:30 a.m.", "9:30 p.m.", 0.0),
    ("Str", "2014-05", "2014-06", 0.0),
    ("Str", "555-1234", "555-1235", 0.0),
    ("Str", "me@a.org", "we@a.org", 0.0),
    # What can't be answered.
    ("None", "Not answerable", "Not answerable", 1.0),
    ("None", "Not answerable", "not answerable.", 14 / 15),
    ("None", "Not answerable", "Blue", 0.0),
    # Lists: as long as each other, in any order, and as good as their worst entry.
    ("List", "['red', 'blue']", "['blue', 'red']", 1.0),
    ("List", "['red', 'blue']", "['blue', 'green']", 0.0),
    ("List", "['red', 'blue']", "['blue']", 0.0),
    ("List", "['kitten', 'zebra']", "['sitting', 'zebra']", 4 / 7),
    ("List", "[1, 2]", "[2, 1]", 1.0),
    ("List", "[1, 2]", "[2, 3]", 0.0),
    ("List", "red", "red", 1.0),
    ("List", "['red', 'blue']", "red, blue", 0.0),
    ("List", "['red']", "['red'", 0.0),
]


@pytest.mark.parametrize(("kind", "expected", "answer", "worth"), CASES)
def test_answers_by_their_kind(kind: str, expected: str, answer: str, worth: float) -> None:
    row = Row((expected,), meta={"answer_format": kind})
    assert METRICS["mmlongbench"].score(row, answer).value == pytest.approx(worth)


def test_a_number_that_is_none_was_not_parsed() -> None:
    metric = METRICS["mmlongbench"]
    assert not metric.score(Row(("5",), meta={"answer_format": "Int"}), "five").parsed
    assert not metric.score(Row(("5.5",), meta={"answer_format": "Float"}), "a few").parsed
    assert metric.score(Row(("5",), meta={"answer_format": "Int"}), "6").parsed


def test_a_list_is_read_and_not_run() -> None:
    row = Row(("['a']",), meta={"answer_format": "List"})
    assert METRICS["mmlongbench"].score(row, "[__import__('os').getcwd()]").value == 0.0


def test_f1_over_what_can_be_and_what_was_answered() -> None:
    """Three can be answered and are worth 1, 0 and 0.5; four were answered: recall 1.5 / 3, precision 1.5 / 4."""
    figures = METRICS["mmlongbench"].figures
    assert figures is not None
    rows = [Row((one,)) for one in ("a", "b", "c", "Not answerable", "Not answerable")]
    answers = ["a", "x", "cc", "y", "Not answerable"]
    scores = [Score(1.0), Score(0.0), Score(0.5), Score(0.0), Score(1.0)]
    assert figures(rows, answers, scores) == {"f1": pytest.approx(2 * 0.5 * 0.375 / 0.875)}
    none = [Score(0.0)] * 5
    assert figures(rows, ["Not answerable"] * 5, none) == {"f1": 0.0}


def test_it_needs_the_kind_of_the_answer() -> None:
    fits = METRICS["mmlongbench"].fits
    assert fits(Row(("5",), meta={"answer_format": "Int"}))
    assert not fits(Row(("5",)))
    assert not fits(Row(("5",), meta={"answer_format": "Number"}))
