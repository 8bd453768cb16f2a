"""Orders of rows in which those of one row group come near each other: what a shuffle buffer gives, as a function of a seed.

A picture that is packed with others can only be read with them. Drawn from all over a data set, each would take as much
reading as its whole row group; drawn from a few open row groups at a time, each group is read about once. Knows row
numbers, not what is in rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

OPENED_GROUPS = 12
"""So many row groups rows are drawn from at a time; the converter's have 100 rows or 32 MiB of media."""


def shuffle_by_groups(rows: Sequence[int], groups: Sequence[int | None], random: Random, opened: int) -> list[int]:
    """Every row once, drawn from `opened` row groups at a time, which are drawn from all of them.

    Args:
        rows: row numbers.
        groups: the row group of each row number.
        random: draws.
        opened: how many row groups there are rows from at a time; one that is used up is replaced by another.
    """
    members: dict[int | None, list[int]] = {}
    for row in rows:
        members.setdefault(groups[row], []).append(row)
    waiting = list(members.values())
    random.shuffle(waiting)
    for group in waiting:
        random.shuffle(group)
    there, order = [waiting.pop() for _ in range(min(opened, len(waiting)))], []
    while there:
        place = random.randrange(len(there))
        order.append(there[place].pop())
        if not there[place]:
            last = waiting.pop() if waiting else there.pop()
            if place < len(there):
                there[place] = last
    return order


def shuffle_passes(
    passes: Sequence[Sequence[Sequence[int]]], groups: Sequence[int | None], random: Random
) -> list[int]:
    """All rows of all sources, mixed evenly: rows without a group as if shuffled freely, the others by their groups.

    Args:
        passes: by source, the rows of each pass over it; a source's passes come one after the other.
        groups: the row group of each row number, None for one that can be read alone.
        random: draws.
    """
    packed = [[[row for row in rows if groups[row] is not None] for rows in source] for source in passes]
    free = [row for source in passes for rows in source for row in rows if groups[row] is None]
    random.shuffle(free)
    sources = [source for source in packed if any(source)]
    opened = max(1, OPENED_GROUPS // max(1, len(sources)))
    near = [[row for rows in source for row in shuffle_by_groups(rows, groups, random, opened)] for source in sources]
    orders = [free, *near]
    turns = [number for number, order in enumerate(orders) for _ in order]
    random.shuffle(turns)
    left = [iter(order) for order in orders]
    return [next(left[number]) for number in turns]
