"""Orders by row group: every row as often as it is due, few row groups at a time, and a mixture all the same."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from pyarrow import parquet

from aria_finetune.data.dataset import EpochOrder
from aria_finetune.data.nearness import shuffle_by_groups
from aria_finetune.media.row_groups import RowGroups

GROUPS = [row // 10 for row in range(1000)]
"""A hundred row groups of ten rows."""


def begun_at_a_time(order: list[int], groups: list[int | None]) -> int:
    """The most row groups of which some rows have come and others have not."""
    left = Counter(groups[row] for row in order)
    begun: set[int | None] = set()
    most = 0
    for row in order:
        begun.add(groups[row])
        most = max(most, len(begun))
        left[groups[row]] -= 1
        if not left[groups[row]]:
            begun.remove(groups[row])
    return most


@pytest.mark.parametrize("opened", [1, 2, 16, 99, 100, 500])
def test_every_row_once_and_so_many_row_groups_at_a_time(opened: int) -> None:
    order = shuffle_by_groups(range(1000), GROUPS, Random(0), opened)
    assert sorted(order) == list(range(1000))
    assert begun_at_a_time(order, GROUPS) <= opened


def test_rows_of_a_batch_come_from_all_over_the_data_set() -> None:
    order = shuffle_by_groups(range(1000), GROUPS, Random(0), 16)
    for start in range(0, 800, 16):
        batch = order[start : start + 16]
        assert len({GROUPS[row] for row in batch}) >= 6
        assert max(batch) - min(batch) > 300
    halves = [sum(row < 500 for row in order[start : start + 250]) for start in range(0, 1000, 250)]
    assert all(70 < half < 180 for half in halves)


def test_no_rows() -> None:
    assert shuffle_by_groups([], [], Random(0), 16) == []


class TestEpochs:
    def order(
        self, groups: list[int | None], *spans: range, weights: tuple[float, ...] = (), seed: int = 3
    ) -> EpochOrder:
        return EpochOrder(spans or [range(len(groups))], weights or [1.0] * max(1, len(spans)), seed, groups)

    def test_files_are_shuffled_as_ever(self) -> None:
        plain = EpochOrder([range(50), range(50, 80)], [1, 2], 3)
        assert list(self.order([None] * 80, range(50), range(50, 80), weights=(1, 2))) == list(plain)

    def test_it_hangs_on_seed_and_epoch_alone(self) -> None:
        first, second = self.order(GROUPS), self.order(GROUPS)
        list(second)
        second.set_epoch(1)
        other_epoch = list(second)
        second.set_epoch(0)
        assert list(first) == list(second)
        assert sorted(other_epoch) == list(range(1000))
        assert len({tuple(first), tuple(other_epoch), tuple(self.order(GROUPS, seed=4))}) == 3

    def test_weights_hold(self) -> None:
        spans, weights = (range(300), range(300, 1000)), (2.5, 0.5)
        order = self.order(GROUPS, *spans, weights=weights)
        for epoch in range(4):
            order.set_epoch(epoch)
            rows = list(order)
            times = Counter(rows)
            assert len(rows) == len(order) == 750 + 350
            assert [sum(times[row] for row in span) for span in spans] == [750, 350]
            assert {times[row] for row in spans[0]} == {2, 3}
            assert {times[row] for row in spans[1]} == {0, 1}

    def test_sources_and_rows_without_a_row_group_are_mixed_in_evenly(self) -> None:
        groups: list[int | None] = [*GROUPS, *[None] * 500]
        rows = list(self.order(groups, range(600), range(600, 1500)))
        for start in range(0, 1500, 150):
            part = rows[start : start + 150]
            assert 30 < sum(groups[row] is None for row in part) < 70
            assert 40 < sum(row < 600 for row in part) < 80

    @pytest.mark.parametrize(("size", "sources", "most"), [(100, 1, 66), (100, 3, 66), (10, 1, 72)])
    def test_a_reader_reads_each_row_group_about_once_in_a_pass(
        self, tmp_path: Path, size: int, sources: int, most: int
    ) -> None:
        """As a worker reads that gets every second batch of four rows; row groups at a border belong to two sources."""
        count = 60 * size
        media = pa.array([[{"bytes": b"%d" % row}] for row in range(count)])
        parquet.write_table(pa.table({"media": media}), tmp_path / "data.parquet", row_group_size=size)
        cut = [count * number // sources + number for number in range(sources)] + [count]
        spans = [range(start, end) for start, end in pairwise(cut)]
        reads = {}
        for near in (True, False):
            groups = [row // size for row in range(count)] if near else [None] * count
            rows, reader = list(self.order(groups, *spans)), RowGroups()
            for start in range(0, count, 8):
                for row in rows[start : start + 4]:
                    assert reader.read(tmp_path / "data.parquet", (row // size, row % size, 0)) == b"%d" % row
            reads[near] = reader.reads
        assert 60 <= reads[True] <= most
        assert reads[False] > 0.3 * count, "shuffled freely, most rows are read with their whole row group"
