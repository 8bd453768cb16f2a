"""The share of time that training waits for data, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aria_finetune.trainer import waiting
from aria_finetune.trainer.waiting import DataWait


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


def batches(clock: Clock, *seconds: float) -> Iterator[int]:
    """A loader that takes so long for each batch, and a second to find that there is no other."""
    for number, duration in enumerate(seconds):
        clock.now += duration
        yield number
    clock.now += 1


def train(wait: DataWait, clock: Clock, *seconds: float, step: float) -> list[int]:
    """Steps that take `step` seconds each; what they were made of."""
    seen = []
    for batch in wait.timed(batches(clock, *seconds)):
        seen.append(batch)
        clock.now += step
    return seen


def test_what_passes_until_a_batch_comes_is_counted_and_nothing_else(clock: Clock) -> None:
    wait = DataWait(2, pytest.fail)
    began = clock.now
    assert train(wait, clock, 1.0, 0.0, 1.0, step=3.0) == [0, 1, 2]
    assert clock.now - began == 12.0
    assert wait.take(12.0) == 0.25  # 2 for batches, 1 for the end
    clock.now += 50  # an evaluation, a checkpoint
    assert wait.take(50.0) == 0.0


def test_the_batches_after_those_that_were_taken_are_still_there(clock: Clock) -> None:
    """The trainer takes those of one update at a time from the loader's iterator."""
    wait, source = DataWait(2, pytest.fail), batches(clock, 1.0, 1.0, 1.0)
    first = wait.timed(source)
    assert [next(first), next(first)] == [0, 1]
    del first
    assert list(wait.timed(source)) == [2]
    assert wait.take(16.0) == 0.25


def test_what_was_before_the_beginning_is_not_counted(clock: Clock) -> None:
    wait = DataWait(2, pytest.fail)
    train(wait, clock, 5.0, step=0.0)
    wait.begin()
    assert wait.take(1.0) == 0.0


def test_an_error_of_the_loader_comes_through(clock: Clock) -> None:
    def broken() -> Iterator[int]:
        clock.now += 2
        raise ValueError("a worker died")
        yield 0

    wait = DataWait(2, pytest.fail)
    with pytest.raises(ValueError, match="a worker died"):
        next(wait.timed(broken()))
    assert wait.take(4.0) == 0.5


def test_no_share_is_above_the_whole(clock: Clock) -> None:
    wait = DataWait(2, pytest.fail)
    train(wait, clock, 5.0, step=0.0)
    assert wait.take(1e-9) == 1.0


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([(9, 30), (9, 30), (9, 30)], ["30% of the time"]),
        ([(6, 30), (6, 30), (6, 30)], []),  # not above
        ([(9, 300)] * 4, []),
        ([(100, 100), (1, 100), (100, 100)], []),  # not one line after the other
        ([(100, 100)], []),  # the first batches
        ([(9, 10)] * 5, []),  # not long enough
        ([(9, 10)] * 7, ["90% of the time"]),
        ([(90, 100)] * 9, ["90% of the time"]),  # once
    ],
)
def test_a_hint_comes_once_where_it_stays_high(
    clock: Clock, intervals: list[tuple[float, float]], said: list[str]
) -> None:
    lines: list[str] = []
    wait = DataWait(3, lines.append)
    for waited, seconds in intervals:
        train(wait, clock, waited - 1, step=0.0)
        wait.take(seconds)
    assert [line[: len("30% of the time")] for line in lines] == said
    assert all("raise train.dataloader_num_workers (it is 3)" in line for line in lines)
