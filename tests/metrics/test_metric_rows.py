"""What a metric knows of a record: which answers are right, what was asked, what the source said beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aria_finetune.data_formats.record import Media, Message, Part, Record, Source
from aria_finetune.metrics import row_of
from aria_finetune.metrics.rows import expected_answers


@pytest.mark.parametrize(
    ("turns", "references", "expected"),
    [
        ([("user", "a"), ("assistant", "bc")], (), ("bc",)),
        ([("user", "a"), ("assistant", "b")], ("x", "y"), ("x", "y")),
        ([("user", "a")], (), ()),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], (), ()),
        ([], (), ()),
    ],
)
def test_expected_answers(
    make_record: Callable[..., Record],
    turns: list[tuple[str, str]],
    references: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    assert expected_answers(make_record(turns, references=references)) == expected


def test_an_answer_in_several_parts_is_one() -> None:
    said = (Part("text", "b"), Part("image", None, 0), Part("text", "c"))
    record = Record("id", (Message("assistant", said),), (), (), None, "{}", Source("aria", "f", 0, "1"))
    assert expected_answers(record) == ("bc",)


def test_a_row_has_what_the_record_says(make_record: Callable[..., Record]) -> None:
    picture = Media("image", "a.png", "0" * 64, "image/png", 640, 480)
    turns = [("user", "first"), ("assistant", "yes"), ("user", "last"), ("assistant", "no")]
    row = row_of(make_record(turns, meta={"bbox": [1, 2, 3, 4]}, form="refcoco", media=[picture]))
    assert (row.expected, row.question, row.meta, row.format) == (("no",), "last", {"bbox": [1, 2, 3, 4]}, "refcoco")
    assert row.size == (640, 480)
    bare = row_of(make_record(()))
    assert (bare.expected, bare.question, bare.meta, bare.size) == ((), "", {}, None)
