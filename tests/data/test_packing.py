"""Which rows go together: best fit, and the micro-batches of optimizer steps with packing and without."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aria_finetune.data.dataset import EpochOrder
from aria_finetune.data.packing import MicroBatches, Packing, best_fit

LENGTHS = st.lists(st.integers(0, 120), max_size=40)


@pytest.mark.parametrize(
    ("lengths", "packs"),
    [
        ([], []),
        ([7], [[0]]),
        ([5, 5, 5, 5], [[0, 1], [2, 3]]),
        ([6, 3, 4, 7], [[1, 3], [0, 2]]),
        ([2, 9, 4, 4], [[2, 3, 0], [1]]),
        ([3, 30, 3], [[1], [0, 2]]),
        ([0, 10, 0], [[0, 1, 2]]),
    ],
)
def test_packs_by_hand(lengths: list[int], packs: list[list[int]]) -> None:
    made = best_fit(lengths, 10)
    assert sorted(map(sorted, packs)) == sorted(made)
    assert [sum(lengths[place] for place in pack) for pack in made] == sorted(
        (sum(lengths[place] for place in pack) for pack in made), reverse=True
    )


def test_the_fullest_pack_that_has_room_is_taken() -> None:
    assert best_fit([6, 7, 3, 2], 10) == [[1, 2], [0, 3]]
    assert best_fit([5, 6, 7, 4, 3], 10) == [[2, 4], [1, 3], [0]]


@given(LENGTHS, st.integers(1, 100))
def test_every_row_is_in_one_pack_and_none_is_too_full(lengths: list[int], capacity: int) -> None:
    packs = best_fit(lengths, capacity)
    assert sorted(place for pack in packs for place in pack) == list(range(len(lengths)))
    for pack in packs:
        assert pack == sorted(pack)
        assert (
            sum(lengths[place] for place in pack) <= capacity
            or len(pack) == 1
            or _one_is_too_long(pack, lengths, capacity)
        )


def _one_is_too_long(pack: list[int], lengths: list[int], capacity: int) -> bool:
    return sum(lengths[place] > 0 for place in pack) == 1 and any(lengths[place] > capacity for place in pack)


@given(st.lists(st.integers(1, 100), max_size=9))
def test_no_more_packs_than_its_bound_over_the_best_there_is(lengths: list[int]) -> None:
    best = _fewest(tuple(sorted(lengths, reverse=True)), ())
    assert len(best_fit(lengths, 100)) <= 11 / 9 * best + 1


def _fewest(lengths: tuple[int, ...], rooms: tuple[int, ...]) -> int:
    """The fewest packs of 100 by trying all."""
    if not lengths:
        return len(rooms)
    first, rest = lengths[0], lengths[1:]
    found = _fewest(rest, tuple(sorted((*rooms, 100 - first))))
    for room in set(rooms):
        if room >= first:
            left = list(rooms)
            left.remove(room)
            found = min(found, _fewest(rest, tuple(sorted((*left, room - first)))))
    return found


def batches(rows: int, steps: int, *, lengths: list[int], capacity: int | None, seed: int = 3) -> MicroBatches:
    order = EpochOrder([range(len(lengths))], [1], seed)
    return MicroBatches(order, rows, steps, None if capacity is None else Packing(lengths, capacity))


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 5), st.integers(50, 200)
)
def test_each_step_has_the_rows_that_it_has_unpacked(lengths: list[int], rows: int, steps: int, room: int) -> None:
    packed = batches(rows, steps, lengths=lengths, capacity=room * rows)
    apart = batches(rows, steps, lengths=lengths, capacity=None)
    ours, theirs = list(packed), list(apart)
    assert len(ours) == len(theirs) == len(packed) == len(apart)
    for start in range(0, len(ours), steps):
        step = ours[start : start + steps]
        assert Counter(row for batch in step for row in batch) == Counter(
            row for batch in theirs[start : start + steps] for row in batch
        )
        turn = start // steps % len(step)
        filled = [bool(batch) for batch in step[turn:] + step[:turn]]
        assert filled == sorted(filled, reverse=True), "the filled ones follow each other from the step's place on"
        assert all(sum(lengths[row] for row in batch) <= room * rows for batch in step)


def test_short_rows_lie_in_one_micro_batch_and_long_ones_do_not() -> None:
    assert [len(batch) for batch in batches(1, 8, lengths=[10] * 16, capacity=100)] == [8, *[0] * 7, 0, 8, *[0] * 6]
    assert [len(batch) for batch in batches(1, 8, lengths=[60] * 8, capacity=100)] == [1] * 8


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_every_worker_of_the_loader_has_batches_with_rows(workers: int) -> None:
    made = list(batches(1, 8, lengths=[10] * 128, capacity=100))
    rows = [sum(map(len, made[worker::workers])) for worker in range(workers)]
    assert rows == [128 // workers] * workers, "batches are handed out in turn"


def test_packs_that_are_more_than_the_micro_batches_asked_for_are_not_used() -> None:
    # 39 10 1 10, 1 28 16 15 and 18 29 5 8 fill three times 60; best fit takes four.
    lengths = [39, 10, 1, 10, 1, 28, 16, 15, 18, 29, 5, 8]
    assert len(best_fit(lengths, 60)) == 4
    made = MicroBatches(_InOrder(lengths), 4, 3, Packing(lengths, 60))
    assert [len(batch) for batch in made] == [4, 4, 4]


class _InOrder(EpochOrder):
    """Rows as they are numbered."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__([range(len(lengths))], [1], 0)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(range(len(self)))


def test_an_epoch_gives_the_same_again_and_another_does_not() -> None:
    lengths = [10 + row % 17 for row in range(64)]
    one, other = (batches(1, 8, lengths=lengths, capacity=100) for _ in range(2))
    first = list(one)
    assert first == list(one) == list(other)
    one.set_epoch(1)
    assert list(one) != first
    one.set_epoch(0)
    assert list(islice(one, 24, None)) == first[24:]
