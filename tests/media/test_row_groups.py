"""Media read from Parquet files by their places, a row group at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from aria_finetune.errors import MediaError
from aria_finetune.media.row_groups import RowGroups

ROWS: list[list[bytes | None]] = [[b"a", b"b"], [], [b"c"], [b"", None], [b"d"], [b"e" * 1000], [b"f"]]
PLACES = {(0, 0, 0): b"a", (0, 0, 1): b"b", (0, 2, 0): b"c", (1, 0, 0): b"", (1, 1, 0): b"d", (2, 0, 0): b"f"}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Row groups of three rows, the last of one."""
    return write(tmp_path / "data.parquet")


def write(path: Path, rows: list[list[bytes | None]] = ROWS, **options: Any) -> Path:
    media = [[{"kind": "image", "bytes": content} for content in row] for row in rows]
    schema = pa.list_(pa.struct([("kind", pa.string()), ("bytes", pa.binary())]))
    table = pa.table({"id": [str(row) for row in range(len(rows))], "media": pa.array(media, schema)})
    parquet.write_table(table, path, row_group_size=3, **options)
    return path


@pytest.mark.parametrize(
    "options", [{}, {"use_compliant_nested_type": False}, {"compression": "zstd"}], ids=["ours", "item", "compressed"]
)
def test_the_bytes_of_every_place(tmp_path: Path, options: dict[str, Any]) -> None:
    groups = RowGroups()
    packed = write(tmp_path / "data.parquet", **options)
    assert {place: groups.read(packed, place) for place in PLACES} == PLACES
    assert groups.read(packed, (1, 2, 0)) == b"e" * 1000
    assert groups.reads == 3, "each row group once"


def test_the_row_groups_that_were_used_last_are_kept(packed: Path) -> None:
    groups = RowGroups(groups=2)
    for group in (0, 1, 0, 1):
        groups.read(packed, (group, 0, 0))
    assert groups.reads == 2
    groups.read(packed, (2, 0, 0))  # the first of them goes
    groups.read(packed, (1, 0, 0))
    assert groups.reads == 3
    groups.read(packed, (0, 0, 0))
    assert groups.reads == 4


def test_no_more_bytes_are_kept_than_allowed_but_for_one_row_group(packed: Path) -> None:
    groups = RowGroups(kept_bytes=100)
    for _ in range(3):
        groups.read(packed, (1, 1, 0))  # with more than 1000 bytes beside it
    assert groups.reads == 1
    groups.read(packed, (0, 0, 0))
    groups.read(packed, (2, 0, 0))
    groups.read(packed, (0, 0, 0))
    assert groups.reads == 3, "small ones fit together"
    groups.read(packed, (1, 1, 0))
    assert groups.reads == 4


def test_a_copy_reads_for_itself(packed: Path) -> None:
    groups = RowGroups(groups=1, kept_bytes=7)
    groups.read(packed, (0, 0, 0))
    twin = copy.deepcopy(groups)  # of the same parts as what goes to another process
    assert twin.reads == 0
    assert twin.__reduce__() == groups.__reduce__()
    assert twin.read(packed, (0, 0, 1)) == b"b"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ((3, 0, 0), "media_changed"),
        ((0, 3, 0), "media_changed"),
        ((0, 0, 2), "media_changed"),
        ((0, 1, 0), "media_changed"),
        ((2, 1, 0), "media_changed"),
        ((1, 0, 1), "media_missing"),
    ],
    ids=["group", "row", "medium", "none in the row", "row of the last", "null"],
)
def test_a_place_that_is_not_there(packed: Path, place: tuple[int, int, int], reason: str) -> None:
    with pytest.raises(MediaError) as raised:
        RowGroups().read(packed, place)
    assert raised.value.reason == reason


def test_files_that_can_not_be_read(packed: Path, tmp_path: Path) -> None:
    found = {}
    (tmp_path / "linked.parquet").symlink_to(packed)
    (tmp_path / "cut.parquet").write_bytes(packed.read_bytes()[:-20])
    (tmp_path / "other.parquet").write_bytes(b"something else")
    (tmp_path / "folder.parquet").mkdir()
    parquet.write_table(pa.table({"id": ["0"]}), tmp_path / "without.parquet")
    for name in ("linked", "cut", "other", "folder", "without", "gone"):
        with pytest.raises(MediaError) as raised:
            RowGroups().read(tmp_path / f"{name}.parquet", (0, 0, 0))
        found[name] = raised.value.reason
    assert found == {
        "linked": "media_unsafe_path",
        "cut": "media_unreadable",
        "other": "media_unreadable",
        "folder": "media_unreadable",
        "without": "media_unreadable",
        "gone": "media_missing",
    }
