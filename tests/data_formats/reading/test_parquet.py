"""Parquet: rows of Python values, cut between row groups."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.reading.extents import Tally

ROWS = [
    {"id": n, "image": {"bytes": bytes([n]) * 50, "path": None}, "texts": [{"user": "a", "assistant": None}] * (n % 3)}
    for n in range(200)
]


@pytest.mark.parametrize(("size", "parts"), [(1, 20), (1 << 30, 1)])
def test_rows_in_parts(tmp_path: Path, size: int, parts: int) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x", row_group_size=10)
    (file,) = sources.locate(tmp_path / "x")
    extents = sources.cut(file, size)
    assert len(extents) == parts
    found = [row for extent in extents for row in sources.read(file, extent)]
    assert found == ROWS
    assert sum((sources.count(file, extent) for extent in extents), Tally()).records == 200


def test_several_files_are_one_source(tmp_path: Path) -> None:
    for n in (10, 9):
        parquet.write_table(pa.Table.from_pylist(ROWS[n : n + 1]), tmp_path / f"part-{n}.parquet")
    found = [row["id"] for file in sources.locate(tmp_path) for row in sources.read(file)]
    assert found == [9, 10]


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:4] + bytes(len(data) - 8) + data[-4:]])
def test_a_damaged_file_is_told(tmp_path: Path, damage) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x")
    (tmp_path / "x").write_bytes(damage((tmp_path / "x").read_bytes()))
    (file,) = sources.locate(tmp_path / "x")
    with pytest.raises(FormatError, match="damaged"):
        [list(sources.read(file, extent)) for extent in sources.cut(file, 1)]


def test_no_row_at_all(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": pa.array([], pa.int32())}), tmp_path / "x")
    (file,) = sources.locate(tmp_path / "x")
    with pytest.raises(FormatError, match="no record"):
        sources.cut(file, 1)
