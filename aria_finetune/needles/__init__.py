"""`needles`: rows in which one fact or one odd picture is hidden at a known depth, to see how far back a model finds it.

    hide_needles(recipe, Path("needles"), NeedleOptions(lengths=(4096, 65536)), console)

What they are hidden among are the rows of the recipe's `data.train`. `evaluate` on the data set that this makes says by length and
depth how many were found (`aria_finetune.needles.grid`).
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from aria_finetune.conversion.derived import derived_set
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.rows import plan_row
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import UserError
from aria_finetune.media.inspection import Inspector
from aria_finetune.model.hub_layout import open_settings
from aria_finetune.model.settings import load_tokenizer
from aria_finetune.needles.haystack import Haystack
from aria_finetune.needles.hiding import FORM, KINDS, SIDE, Cell, Kind, Needle, draw_number
from aria_finetune.recipe import Recipe
from aria_finetune.sources import RowReader, build_viewing

SHORTEST = 1024
DEPTHS = (0, 25, 50, 75, 100)
ROWS = 4
NO_LIMIT = 1 << 40
"""Tokens of a row while it is made; it is kept within its own length."""


@dataclass(frozen=True)
class NeedleOptions:
    """The grid: tokens of a row, depths in percent, kinds of needles, and rows of each place in it.

    Without `lengths` they are 1024 and its doubles up to `data.max_tokens`.
    """

    lengths: tuple[int, ...] = ()
    depths: tuple[int, ...] = DEPTHS
    kinds: tuple[Kind, ...] = KINDS
    rows: int = ROWS

    def cells(self, max_tokens: int) -> list[Cell]:
        """All places of the grid, within the recipe's limit.

        Raises:
            UserError: a length is more than that, or none is within it.
        """
        doubles = (SHORTEST << times for times in range(32))
        lengths = self.lengths or tuple(length for length in doubles if length <= max_tokens)
        if not lengths or max(lengths) > max_tokens:
            raise UserError(
                f"rows of {max(lengths, default=SHORTEST)} tokens are wanted, and data.max_tokens is {max_tokens}",
                fix="raise data.max_tokens, or name shorter ones with --length",
            )
        return [Cell(kind, length, depth) for kind in self.kinds for length in lengths for depth in self.depths]


def hide_needles(recipe: Recipe, output: Path, options: NeedleOptions, console: Console) -> dict[str, Any]:
    """Write the data set; returns what `report.json` says.

    Args:
        recipe: its `data.train` is what needles are hidden among, as `data` shows it; `train.seed` chooses what and where.
        output: a folder, which must not exist or be empty.
        options: the grid.
        console: where the counts go.

    Raises:
        UserError: rows can't be read, a length has no room for one of them, or the output is in use.
    """
    cells = options.cells(recipe.data.max_tokens)
    settings = open_settings(recipe.model.path, recipe.model.revision)
    chat, viewing = ChatTokenizer(load_tokenizer(settings)), build_viewing(recipe, settings)
    chosen = {"seed": recipe.train.seed, "data": recipe.dump()["data"], "grid": asdict(options)}
    with (
        tempfile.TemporaryDirectory() as store,
        closing(Inspector(recipe.data.media_timeout)) as inspector,
        derived_set(output, FORM, chosen) as made,
    ):
        rows = RowReader(recipe, viewing, chat, Path(store)).read(recipe.data.train)
        shown = replace(viewing, too_long="reject", max_tokens=NO_LIMIT)
        haystack = Haystack(
            rows.plans,
            lambda record: plan_row(record, shown, chat, inspector=inspector),
            lambda needle: write_picture(needle, Path(store)),
            recipe.train.seed,
        )
        lengths: list[int] = []
        for cell in cells:
            for number in range(options.rows):
                record, tokens = haystack.record(cell, number)
                made.add(record)
                lengths.append(tokens)
        made.rejects = list(rows.rejects)
        made.report = {
            "straws": len(rows.plans),
            "rejected": len(rows.rejects),
            "written": len(lengths),
            "tokens": {"least": min(lengths), "most": max(lengths), "all": sum(lengths)},
        }
    console.print(
        f"{len(lengths):,} rows of {min(lengths):,} to {max(lengths):,} tokens, each with a needle; "
        f"the data set is in {output}/",
        highlight=False,
    )
    return made.report


def write_picture(needle: Needle, folder: Path) -> Media:
    """The picture of a needle as a file in a folder, described as a record does."""
    path = folder / f"{needle.number}.png"
    path.write_bytes(draw_number(needle.number))
    return Media("image", str(path), "", "image/png", SIDE, SIDE, frames=1, origin=path.name)
