"""Parts of a file hold together what the whole holds, wherever they are cut; wrong guesses are found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aria_finetune.data_formats.building import strict_json
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.reading import fast_json, json_array, sources
from aria_finetune.data_formats.reading.extents import WHOLE, Tally
from aria_finetune.data_formats.reading.json_array import WrongGuess

TEXT = st.text(st.sampled_from('ab"\\{}[]:,\n é\u2028'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(
    st.dictionaries(st.sampled_from(["id", "a", "conversations"]), VALUES, min_size=1, max_size=3), min_size=1
)


def read_in_parts(path: Path, size: int, tail: int = 1) -> tuple[list[object], int]:
    (file,) = sources.locate(path)
    extents = sources.cut(file, size, tail)
    found: list[object] = []
    before = Tally()
    for extent in extents:
        values = list(sources.read(file, extent, before))
        tally = sources.count(file, extent)
        assert len(extents) == 1 or tally.records == len(values)
        found += values
        before += tally
    return found, len(extents)


def write(folder: Path, content: str) -> Path:
    path = folder / "data"
    path.write_text(content, encoding="utf-8", newline="\n")
    return path


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 10**9])
@pytest.mark.parametrize("separator", ["\n", "\r\n", "\n\n \n"])
def test_lines_in_parts(tmp_path: Path, size: int, separator: str) -> None:
    wanted = [{"id": n, "t": "grün " * (n % 5)} for n in range(50)]
    lines = separator.join(json.dumps(record, ensure_ascii=False) for record in wanted)
    found, parts = read_in_parts(write(tmp_path, lines + separator), size)
    assert found == wanted
    assert parts == 1 if size == 10**9 else parts > 1 or size == 1000


@pytest.mark.parametrize("size", [20, 333, 5000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_in_parts(tmp_path: Path, size: int, indent: int | None) -> None:
    wanted = [{"id": n, "turns": [{"id": n, "v": '}, {"id": '}, {"w": '\\\\"'}]} for n in range(80)]
    found, parts = read_in_parts(write(tmp_path, json.dumps(wanted, indent=indent) + "\n"), size)
    assert found == wanted
    assert parts > 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(RECORDS, st.integers(1, 200), st.sampled_from([None, 0, 1]))
def test_any_list_in_parts_or_as_a_whole(tmp_path_factory, records: list, size: int, indent: int | None) -> None:
    path = write(tmp_path_factory.mktemp("list"), json.dumps(records, indent=indent, ensure_ascii=False))
    try:
        found, _ = read_in_parts(path, size)
    except WrongGuess:
        (file,) = sources.locate(path)
        found = list(sources.read(file, WHOLE))
    assert found == records


def test_a_guess_that_a_text_deceives_is_found_out(tmp_path: Path) -> None:
    deceiving = [{"id": 0}, *({"id": n, "text": '"}, {"id": 1}, {"id": 2}' * 30} for n in range(30))]
    content = json.dumps(deceiving)
    path = write(tmp_path, content.replace('\\"}, {\\"id\\"', '\\"}, {"id"'))
    (file,) = sources.locate(path)
    with pytest.raises((WrongGuess, FormatError)):
        read_in_parts(path, 100)
    honest = write(tmp_path, content)
    assert list(sources.read(sources.locate(honest)[0])) == deceiving
    assert file.contents.kind == "json_array"


def test_nested_lists_that_look_like_records_are_found_out(tmp_path: Path) -> None:
    records = [{"id": n, "inner": [{"id": 1}, {"id": 2}, {"id": 3}]} for n in range(40)]
    path = write(tmp_path, json.dumps(records))
    with pytest.raises(WrongGuess):
        read_in_parts(path, 64)
    assert list(sources.read(sources.locate(path)[0])) == records


def test_a_bad_record_in_a_part_is_one_bad_record(tmp_path: Path) -> None:
    records = [json.dumps({"id": n, "x": "y" * 20}) for n in range(60)]
    records[30] = '{"id": NaN, "x": 1}'
    records[31] = '{"id": 1, "id": 2}'
    found, parts = read_in_parts(write(tmp_path, "[" + ", ".join(records) + "]"), 200)
    assert parts > 1
    assert [n for n, value in enumerate(found) if isinstance(value, RecordError)] == [30, 31]
    assert len(found) == 60


@pytest.mark.parametrize("broken", [(10, '{"id": 10, "x": }'), (40, '{"id": 40, "x": "y"')])
def test_a_broken_list_is_told_by_line_and_column(tmp_path: Path, broken: tuple[int, str]) -> None:
    records = [json.dumps({"id": n, "x": "y" * 20}) for n in range(60)]
    records[broken[0]] = broken[1]
    path = write(tmp_path, "[" + ",\n".join(records) + "]")
    with pytest.raises(WrongGuess):
        read_in_parts(path, 200)
    with pytest.raises(FormatError, match=f"line {broken[0] + 1 + (broken[0] == 40)}, column"):
        list(sources.read(sources.locate(path)[0]))


def test_a_list_longer_than_a_block(tmp_path: Path) -> None:
    records = [{"id": n, "x": "é" * 70_000, "y": [n]} for n in range(40)]
    path = write(tmp_path, json.dumps(records, ensure_ascii=False))
    assert path.stat().st_size > 5 * json_array.BLOCK_BYTES
    assert list(sources.read(sources.locate(path)[0])) == records
    assert read_in_parts(path, 1 << 20)[0] == records


CASES = st.one_of(
    VALUES.map(lambda value: json.dumps(value, ensure_ascii=False)),
    VALUES.map(json.dumps),
    st.text(st.sampled_from('{}[]":,0123456789eE.-+ntfalsru\\ '), max_size=30),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(CASES.filter(lambda text: "\n" not in text), min_size=1, max_size=4))
@example(['{"a": 1, "a": 2}'])
@example(["[" * 101 + "]" * 101])
@example(["[" * 100 + "]" * 100])
@example(['{"a": 12345678901234567890123}'])
@example(['{"a": "12345678901234567890123"}'])
@example(['{"a:b": 1, "a:b": "\\"", "c": "a:\\\\"}'])
@example(['{"a": {"b": 1, "b": 1}}', "{}"])
@example(["[1],[2]"])
@example(["[1", "2]"])
@example(['"\\ud800"'])
def test_many_at_once_are_as_one_by_one(lines: list[str]) -> None:
    fast = fast_json.parse_lines([line.encode("utf-8", "surrogatepass") for line in lines])
    slow = [fast_json.parse_one(line) for line in lines]
    if fast is None:
        return
    assert fast == slow
    assert list(map(repr, fast)) == list(map(repr, slow))


def test_what_is_harmless_goes_the_fast_way() -> None:
    records = [{"id": str(n), "x": [{"y": 'a:b "c" {[', "z": None}, 1.5, -3]} for n in range(5)]
    assert fast_json.parse_lines([json.dumps(record).encode() for record in records]) == records
    assert fast_json.parse_elements(json.dumps(records, indent=1)[1:-1].encode()) == records


def test_the_deepest_that_is_read() -> None:
    assert strict_json.MAX_DEPTH == 100
    assert fast_json.parse_lines([b"[" * 100 + b"]" * 100]) is not None
    assert fast_json.parse_lines([b"[" * 101 + b"]" * 101]) is None
