"""The rows of a batch, each with its own tokens and tiles. Knows the form of the collator's batches, not how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aria_finetune.data.collation import BadRow, Batch
from aria_finetune.data.rows import LARGE, SMALL, RowPlan
from aria_finetune.data.tiles import Tile


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A row as it stands in a batch: all its columns, padding included, and its tiles in the order of the text."""

    row: int
    ids: list[int]
    labels: list[int]
    mask: list[int]
    tiles: list[Tile]

    @property
    def shown(self) -> list[tuple[int, int]]:
        """Id and label of every token that is not padding."""
        columns = zip(self.ids, self.labels, self.mask, strict=True)
        return [(index, label) for index, label, mask in columns if mask]


def rows_of(batch: Batch, asked: Sequence[int], plans: Sequence[RowPlan]) -> list[SeenRow | BadRow]:
    """What became of each of the rows `asked` for, in their order.

    Args:
        batch: what `Collator` made of them with `on_bad_media` of `skip`.
        asked: row numbers, places in `plans`.
        plans: all rows of the run.
    """
    bad: dict[int, BadRow] = {one.row: one for one in batch.get("bad_media", ())}
    made = [row for row in asked if row not in bad]
    found = batch["rows"].tolist() if made else []
    if found != made:
        raise ValueError(f"the batch holds rows {found}, asked for were {made}")
    tiles = _tiles(batch)
    seen: list[SeenRow | BadRow] = []
    line = first = 0
    for row in asked:
        if row in bad:
            seen.append(bad[row])
            continue
        behind = first + sum(sight.tiles for sight in plans[row].sights)
        ids, labels, mask = (batch[name][line].tolist() for name in ("input_ids", "labels", "attention_mask"))
        seen.append(SeenRow(row, ids, labels, mask, tiles[first:behind]))
        line, first = line + 1, behind
    return seen


def _tiles(batch: Batch) -> list[Tile]:
    """All tiles of a batch in the order of the text."""
    stacked = [
        Tile(pixels.numpy(), height, width)
        for size in (SMALL, LARGE)
        if f"pixels_{size}" in batch
        for pixels, (height, width) in zip(batch[f"pixels_{size}"], batch[f"extents_{size}"].tolist(), strict=True)
    ]
    return [stacked[place] for place in batch["tile_order"].tolist()] if stacked else []
