"""Tables and lines: cells stay the texts they are, and the delimiter is found by the rows."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

import pytest

from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.reading import sources


def rows(path: Path, content: str | bytes, name: str = "table.csv") -> list[object]:
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (file,) = sources.locate(path / name)
    assert file.contents.kind == "text"
    return list(sources.read(sources.with_layout(file, "rows")))


def test_cells_are_not_guessed_at(tmp_path: Path) -> None:
    assert rows(tmp_path, "id,answer\n00000,3.30\n,NaN\n1e5,true\n") == [
        {"id": "00000", "answer": "3.30"},
        {"id": "", "answer": "NaN"},
        {"id": "1e5", "answer": "true"},
    ]


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    lines = [["question", "answer"], ["Who, and when?", "He; she | it"], ["a\tb", "c"]]
    with (tmp_path / "x").open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(lines)
    assert rows(tmp_path, (tmp_path / "x").read_bytes()) == [dict(zip(lines[0], row, strict=True)) for row in lines[1:]]


def test_quotes_and_lines_within_cells(tmp_path: Path) -> None:
    assert rows(tmp_path, 'a,b\r\n"one\r\ntwo","say ""hi"""\r\n\r\nx,y\r\n') == [
        {"a": "one\r\ntwo", "b": 'say "hi"'},
        {"a": "x", "b": "y"},
    ]


def test_a_row_that_is_too_long_is_one_bad_record(tmp_path: Path) -> None:
    found = rows(tmp_path, "a,b\n1,2\n1,2,3\n1\n3,4\n")
    assert [found[0], found[3]] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert isinstance(found[1], RecordError)
    assert "3 cells under a header of 2" in found[1].detail
    assert isinstance(found[2], RecordError)


def test_a_picture_in_a_cell(tmp_path: Path) -> None:
    picture = base64.b64encode(bytes(300_000)).decode()
    assert rows(tmp_path, f"index\timage\n0\t{picture}\n") == [{"index": "0", "image": picture}]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("only one column\nand no second\n", "neither JSON nor a table"),
        ("a,b,a\n1,2,3\n", "'a' more than once"),
        ('a,b\n1,"2\n3,4\n', "broken table"),
        (b"a,b\n1,\xff\n", "byte 6 is not UTF-8"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: str | bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what) as caught:
        rows(tmp_path, content)
    assert "table.csv" in (caught.value.where or "")


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone # a\r\n\r\n  \n two\t3\n")
    (file,) = sources.locate(tmp_path / "t.txt")
    assert list(sources.read(sources.with_layout(file, "lines"))) == ["one # a", " two\t3"]
