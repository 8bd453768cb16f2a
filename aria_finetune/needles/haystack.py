"""Rows of a wanted length with a needle at a wanted depth, made of straws by their tokens.

Of one length the straws are the same at every depth and for every kind of needle, so that nothing but these differs. Knows plans;
knows nothing of files.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count

from aria_finetune.data.rows import RowPlan
from aria_finetune.data_formats.record import Media, Record
from aria_finetune.errors import UserError
from aria_finetune.needles.hiding import FORM, Cell, Needle, Straw, hide, needle_of, straw_of

TRIED = 64
"""So many straws that have no room in what is left of it, and a row counts as full."""


@dataclass
class Haystack:
    """Makes rows.

    Args:
        rows: what needles are hidden among, as they were planned.
        plan: what a record takes.
        picture: makes the file of a needle that is a picture.
        seed: of straws and needles.
    """

    rows: Sequence[RowPlan]
    plan: Callable[[Record], RowPlan]
    picture: Callable[[Needle], Media]
    seed: int
    _straws: dict[int, Straw] = field(default_factory=dict)

    def record(self, cell: Cell, number: int) -> tuple[Record, int]:
        """Row `number` of a cell, and its tokens: as many as the cell's length, less what no straw has room in.

        Raises:
            UserError: no straw has room at all.
        """
        needle = needle_of(cell, number, self.seed)
        media = self.picture(needle) if cell.kind == "image" else None
        drawn = self._drawn(cell.length, number)
        chosen: list[int] = []
        made, tokens = self._hidden(needle, cell, number, chosen, media)
        while more := self._fitting(drawn, cell.length - tokens):
            chosen += more
            made, tokens = self._hidden(needle, cell, number, chosen, media)
        if not chosen:
            shortest = min(row.tokens for row in self.rows)
            raise UserError(
                f"a row of {cell.length} tokens has no room for any of the recipe's rows, of which the shortest has {shortest}",
                fix="name longer ones with --length",
            )
        return made, tokens

    def _drawn(self, length: int, number: int) -> Iterator[int]:
        """Rows without end: all of them in an order drawn from the seed, then again in another."""
        for again in count():
            order = list(range(len(self.rows)))
            random.Random(f"{self.seed}:{FORM}:{length}:{number}:{again}").shuffle(order)  # noqa: S311 (a seeded order)
            yield from order

    def _fitting(self, drawn: Iterator[int], room: int) -> list[int]:
        """The next rows that have room together; what has none is passed over, until too many have none."""
        chosen: list[int] = []
        missed = 0
        while missed < TRIED:
            row = next(drawn)
            if self.rows[row].tokens <= room:
                chosen.append(row)
                room -= self.rows[row].tokens
            else:
                missed += 1
        return chosen

    def _hidden(
        self, needle: Needle, cell: Cell, number: int, chosen: Sequence[int], media: Media | None
    ) -> tuple[Record, int]:
        """The record with its needle as near to its depth as straws allow, and its tokens."""
        reached = [0, *accumulate(self.rows[row].tokens for row in chosen)]
        wanted = cell.depth / 100 * reached[-1]
        above = min(bisect_left(reached, wanted), len(chosen))
        place = above - 1 if above and wanted - reached[above - 1] < reached[above] - wanted else above
        straws = [self._straw(row) for row in chosen]
        made = hide(needle, cell, number, straws[:place], straws[place:], media)
        return made, self.plan(made).tokens

    def _straw(self, row: int) -> Straw:
        if row not in self._straws:
            self._straws[row] = straw_of(self.rows[row].record)
        return self._straws[row]
