"""Questions about long documents as MMLongBench-Doc scores them: by the kind of the answer, and F1 over answering at all.

Ma et al. 2024 (arXiv 2407.01523), section 3 and its `eval_score.py`. There another model first shortens each answer to
its bare content; here the answer is scored as it was given, so ask for short answers.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence

from aria_finetune.metrics.anls import edit_distance
from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score

NOT_ANSWERABLE = "Not answerable"
KINDS = ("Int", "Float", "Str", "None", "List")
_WHOLE = (
    re.compile(r"\d+(-\d+|\s\d+)?"),  # a telephone number
    re.compile(r"\d{4}[-\s]\d{2}([-\s]\d{2})?"),  # a date
    re.compile(r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}"),
)


def clean(text: str) -> str:
    """A text as it is compared: lower case, without parentheses, outer quotes, a leading `$` and a trailing `%`."""
    bare = re.sub(r"\s*\([^)]*\)", "", text.lower().strip()).strip()
    bare = re.sub(r"^['\"]|['\"]$", "", bare).strip()
    return bare.lstrip("$").strip().rstrip("%").strip()


def likeness(expected: str, answer: str) -> float:
    """1 - edit distance / longer length, 0 up to a likeness of half."""
    longer = max(len(expected), len(answer))
    alike = 1 - edit_distance(expected, answer) / longer if longer else 1.0
    return alike if alike > 0.5 else 0.0


def must_be_whole(expected: str) -> bool:
    """Whether a part of it right is nothing: addresses, files, pages, telephone numbers, times and dates."""
    marks = "https://" in expected or expected.endswith((".py", "ipynb")) or expected.startswith("page")
    time = "a.m." in expected or "p.m." in expected
    return marks or time or any(pattern.fullmatch(expected) for pattern in _WHOLE)


def _integer(text: str) -> int | None:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return None


def _decimal(text: str) -> float | None:
    try:
        value = float(clean(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_near(expected: float, answer: float) -> bool:
    """Within 1 %, or the same to the digits both have, also where one of them is the percentage of the other."""
    return any(
        math.isclose(wanted, answer, rel_tol=0.01) or _same_digits(wanted, answer)
        for wanted in (expected / 100, expected, expected * 100)
    )


def _same_digits(first: float, second: float) -> bool:
    digits = max(min(_digits(first), _digits(second)), 2)
    return round(first, digits) == round(second, digits)


def _digits(value: float) -> int:
    _, point, behind = str(value).partition(".")
    return len(behind) if point else 3


def _listed(text: str) -> list[str] | None:
    """The entries of a list as Python writes it; any other text is the one entry, what only begins like a list None."""
    if not text.startswith("["):
        return [text]
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(entry) for entry in found] if isinstance(found, list) else None


def _score_text(expected: str, answer: str) -> float:
    wanted, given = clean(expected), clean(answer)
    return float(wanted == given) if must_be_whole(wanted) else likeness(wanted, given)


def _score_list(expected: list[str], answer: list[str]) -> float:
    wanted, given = (sorted(map(clean, entries)) for entries in (expected, answer))
    if len(wanted) != len(given) or not wanted:
        return 0.0
    if _decimal(wanted[0]) is not None or must_be_whole(wanted[0]):
        return float(wanted == given)
    return min(likeness(*pair) for pair in zip(wanted, given, strict=True))


def _judged(kind: str, expected: str, answer: str) -> Score:
    if kind == "Int":
        wanted_number, number = _integer(expected), _integer(answer)
        right = number is not None and number == wanted_number
        return Score(float(right), number is not None, "" if number is None else str(number))
    if kind == "Float":
        wanted, value = _decimal(expected), _decimal(answer)
        if value is None or wanted is None:
            return Score(0.0, parsed=False)
        return Score(float(is_near(wanted, value)), read=f"{value:g}")
    if kind == "List":
        entries = _listed(answer)
        if entries is None:
            return Score(0.0, parsed=False)
        return Score(_score_list(_listed(expected) or [expected], entries))
    return Score(_score_text(expected, answer))


def score(row: Row, answer: str) -> Score:
    """By `answer_format` of the row: Int, Float, Str, None (not answerable) or List."""
    return _judged(str(row.meta["answer_format"]), row.expected[0], answer.strip())


def f1(rows: Sequence[Row], answers: Sequence[str], scores: Sequence[Score]) -> dict[str, float]:
    """Harmonic mean of the score by questions that can be answered and the score by questions that were."""
    answerable = [row.expected[0] != NOT_ANSWERABLE for row in rows]
    answered = sum(answer.strip() != NOT_ANSWERABLE for answer in answers)
    gained = sum(one.value for one, can in zip(scores, answerable, strict=True) if can)
    recall = gained / sum(answerable) if any(answerable) else 0.0
    precision = gained / answered if answered else 0.0
    return {"f1": 2 * recall * precision / (recall + precision) if recall + precision else 0.0}


MMLONGBENCH = Metric(
    name="mmlongbench",
    title="MMLongBench-Doc: by the kind of the answer; F1 over answering at all",
    source="Ma et al. 2024 (MMLongBench-Doc), arXiv 2407.01523, section 3, eval_score.py",
    score=score,
    fits=lambda row: bool(row.expected) and row.meta.get("answer_format") in KINDS,
    binary=False,
    figures=f1,
)
