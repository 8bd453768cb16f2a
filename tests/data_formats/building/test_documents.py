"""Lists in JSON documents, and rows joined by their ids."""

import pytest

from aria_finetune.data_formats.building import documents
from aria_finetune.data_formats.errors import RecordError


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([{"a": 1, "b": 2}], True),
        ([{"a": 1, "b": 2}, "broken", None], True),
        ([{"a": 1, "b": 2}] * documents.SEEN_ENTRIES + [{}], True),
        ([{"a": 1, "b": 2}, {"a": 1}], False),
        (["broken"], False),
        ([], False),
        ({"a": 1, "b": 2}, False),
        (None, False),
    ],
)
def test_a_list_is_told_by_the_keys_of_its_first_entries(value, found):
    assert documents.is_list_of(value, "a", "b") is found


def test_rows_are_joined_by_ids_as_text():
    rows = documents.table(
        [{"id": 7, "x": 1}, {"id": "b", "x": 2}, {"id": 7, "x": 1}, {"x": 3}, None, {"id": True}], "id"
    )
    assert documents.joined(rows, "7", "rows") == {"id": 7, "x": 1}
    assert documents.joined(rows, 7, "rows") == {"id": 7, "x": 1}
    assert documents.joined(rows, "b", "rows") == {"id": "b", "x": 2}
    assert [documents.joined(rows, value, "rows") for value in ("c", None, True, 7.0, [])] == [None] * 5


def test_rows_that_differ_under_one_id_are_not_chosen_between():
    rows = documents.table([{"id": 7, "x": 1}, {"id": 7, "x": 2}, {"id": 7, "x": 2}], "id")
    with pytest.raises(RecordError, match="bad_schema: several rows have the id '7'"):
        documents.joined(rows, 7, "rows")


def test_fields_of_two_rows_are_all_kept():
    first, second = {"id": 1, "split": "val"}, {"id": 1, "split": "train", "kind": "number"}
    assert documents.together(first, second, "second") == {
        "id": 1,
        "split": "val",
        "kind": "number",
        "second": {"split": "train"},
    }


def test_plain_fields_of_a_document():
    assert documents.plain_fields({"a": "x", "b": 1, "c": [1], "d": {"e": 1}, "f": None}) == {"a": "x", "b": 1}
