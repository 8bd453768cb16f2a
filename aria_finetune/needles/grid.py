"""How many needles were found, by length and depth: as numbers and as a picture. Knows answers, not who gave them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aria_finetune.data_formats.record import Record
from aria_finetune.needles.hiding import FORM, Cell

GRID_FILE, GRID_PICTURE = "needles.json", "needles.png"
Grid = dict[str, dict[str, list[dict[str, Any]]]]
"""By who answered and by kind of needle: cells with `length`, `depth`, `rows`, `found` and `accuracy`."""


@dataclass(frozen=True)
class Hidden:
    """The needle of a record: its place in the grid, and the number that is asked for."""

    cell: Cell
    answer: str


def hidden_in(record: Record) -> Hidden | None:
    """The needle of a record; None if it was not made with one."""
    facts = json.loads(record.meta).get(FORM) if record.meta != "{}" else None
    if not isinstance(facts, dict):
        return None
    try:
        return Hidden(Cell(facts["kind"], int(facts["length"]), int(facts["depth"])), str(facts["answer"]))
    except (KeyError, TypeError, ValueError):
        return None


def is_found(number: str, answer: str) -> bool:
    """Whether an answer names the number, whatever it says around it, and no other of five digits or more."""
    said = re.findall(r"\d+", re.sub(r"(?<=\d)[, ](?=\d{3}\b)", "", answer))
    return [digits for digits in said if len(digits) >= len(number)] == [number]


def grid_of(needles: Sequence[Hidden | None], answers: Mapping[str, Sequence[str]]) -> Grid:
    """Counts by cell.

    Args:
        needles: of each row, None for a row without one.
        answers: to the same rows, by who gave them.
    """
    grid: Grid = {}
    for who, given in answers.items():
        tried: dict[Cell, list[bool]] = {}
        for needle, answer in zip(needles, given, strict=True):
            if needle is not None:
                tried.setdefault(needle.cell, []).append(is_found(needle.answer, answer))
        for cell in sorted(tried, key=lambda cell: (cell.kind, cell.length, cell.depth)):
            found = {"rows": len(tried[cell]), "found": sum(tried[cell])}
            entry = {"length": cell.length, "depth": cell.depth, **found, "accuracy": found["found"] / found["rows"]}
            grid.setdefault(who, {}).setdefault(cell.kind, []).append(entry)
    return grid


def write_grid(folder: Path, grid: Grid) -> None:
    """Write `needles.json` and `needles.png`: a map of depth by length for each kind of needle and each who answered."""
    (folder / GRID_FILE).write_text(json.dumps(grid, indent=2) + "\n", encoding="utf-8")
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second that only this needs)

    kinds = sorted({kind for by_kind in grid.values() for kind in by_kind})
    figure = Figure(figsize=(1 + 5 * len(kinds), 0.6 + 3.2 * len(grid)), layout="constrained")
    panels = figure.subplots(len(grid), len(kinds), squeeze=False)
    for row, (who, by_kind) in zip(panels, grid.items(), strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            shades = _draw(axes, by_kind.get(kind, []), f"{who}: {kind} needles")
    figure.colorbar(shades, ax=list(panels.flat), label="share found")
    figure.savefig(folder / GRID_PICTURE, dpi=110, format="png")


def _draw(axes: Any, cells: Sequence[Mapping[str, Any]], title: str) -> Any:
    lengths, depths = (sorted({cell[name] for cell in cells}) for name in ("length", "depth"))
    shares = {(cell["length"], cell["depth"]): cell["accuracy"] for cell in cells}
    values = [[shares.get((length, depth), float("nan")) for length in lengths] for depth in depths] or [[float("nan")]]
    shades = axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set(title=title, xlabel="tokens of the row", ylabel="depth of the needle, %")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), list(map(str, depths)))
    for (length, depth), share in shares.items():
        axes.text(
            lengths.index(length), depths.index(depth), f"{share:.0%}", ha="center", va="center", fontsize="small"
        )
    return shades
