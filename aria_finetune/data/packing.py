"""Which rows go through the model together: the micro-batches of every optimizer step of an epoch.

With packing, the rows of a step lie in as few micro-batches as they fit in, instead of in as many as were asked for. So a step
has the rows, and up to rounding the gradient, that it has without packing, and only takes less time. Knows row numbers and
their lengths.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from aria_finetune.data.dataset import EpochOrder


@dataclass(frozen=True)
class Packing:
    """The tokens of every row by its number, and how many one micro-batch may have."""

    tokens: Sequence[int]
    capacity: int


class MicroBatches:
    """The batch sampler of training: lists of row numbers, `steps` of them for each optimizer step but the last.

    Args:
        order: gives the rows of an epoch.
        rows: of a micro-batch, where nothing is packed.
        steps: micro-batches of an optimizer step (gradient accumulation).
        packing: packs the rows of each optimizer step, which leaves some of its micro-batches empty. Where in the step the
            filled ones begin moves on by one from step to step.
    """

    def __init__(self, order: EpochOrder, rows: int, steps: int, packing: Packing | None = None) -> None:
        self.order = order
        self.rows = rows
        self.steps = steps
        self.packing = packing

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration gives."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        """Micro-batches of an epoch, empty ones included."""
        return math.ceil(len(self.order) / self.rows)

    def __iter__(self) -> Iterator[list[int]]:
        for number, rows in enumerate(_chunks(self.order, self.rows * self.steps)):
            batches = self._step(rows)
            # Loaders hand their batches out to workers in turn: were the filled ones always first, some workers would never decode.
            first = -number % len(batches) if self.packing is not None else 0
            yield from batches[first:] + batches[:first]

    def _step(self, rows: Sequence[int]) -> list[list[int]]:
        apart = list(_chunks(rows, self.rows))
        if self.packing is None:
            return apart
        packs = best_fit([self.packing.tokens[row] for row in rows], self.packing.capacity)
        if len(packs) > len(apart):  # best fit is not always the best
            return apart
        return [[rows[place] for place in pack] for pack in packs] + [[] for _ in range(len(apart) - len(packs))]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of `lengths` in packs of no more than `capacity`: best fit decreasing (Johnson et al. 1974, doi 10.1137/0203025).

    From the longest on, each goes to the fullest pack that has room for it. Packs come fullest first, their places in order. One
    that is longer than the capacity has a pack of its own.
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        found = bisect_left(rooms, (lengths[place], -1))
        if found < len(rooms):
            room, pack = rooms.pop(found)
        else:
            room, pack = capacity, len(packs)
            packs.append([])
        packs[pack].append(place)
        insort(rooms, (room - lengths[place], pack))
    return [sorted(packs[pack]) for _, pack in rooms]


def _chunks(rows: Iterable[int], size: int) -> Iterator[list[int]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
