"""What a run prints about itself: its rows, the model in memory, where everything is. Draws, decides nothing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from aria_finetune.material import Material
from aria_finetune.memory import GIB
from aria_finetune.model.components import Component
from aria_finetune.progress import duration
from aria_finetune.run_folder import PICTURE_FILE, REJECTS_FILE, RunFolder


def show_rows(material: Material, console: Console) -> None:
    """Print how many rows there are and how many were rejected, with the reasons."""
    for kind, rows in (("training", material.train_rows), ("evaluation", material.eval_rows)):
        counts = rows.counts()
        if not counts["rows"] and not counts["rejected"]:
            continue
        console.print(
            f"{kind}: {counts['rows']:,} rows, {counts['tokens']:,} tokens ({counts['labels']:,} in the loss), "
            f"{counts['images']:,} images, {counts['videos']:,} videos",
            highlight=False,
        )
        for reason, count in rows.reasons().items():
            console.print(f"  rejected: {count} {reason}", highlight=False)


def show_components(parts: list[Component], console: Console) -> None:
    """Print the table of bytes per component."""
    table = Table(title="model in memory")
    for column in ("part", "parameters", "dtype", "MiB"):
        table.add_column(column, justify="left" if column in {"part", "dtype"} else "right")
    for part in parts:
        table.add_row(part.name, f"{part.parameters:,}", part.dtype, f"{part.bytes / 2**20:,.2f}")
    total = sum(part.bytes for part in parts)
    table.add_row("total", f"{sum(part.parameters for part in parts):,}", "", f"{total / 2**20:,.2f}")
    console.print(table)
    console.print(f"model in memory: {total / GIB:.2f} GiB", highlight=False)


def show_result(run: RunFolder, seconds: float, console: Console) -> None:
    """Print where everything is."""
    console.print(f"done in {duration(seconds)}; everything is in {run.path}/", highlight=False)
    for name, what in (
        ("adapter/", "the adapter, with tokenizer and processor"),
        ("run.json", "recipe, versions, counts, memory, losses"),
        ("metrics.jsonl", "a line per logged step"),
        (PICTURE_FILE, "training and evaluation loss"),
        (REJECTS_FILE, "rows that were not used, and why"),
    ):
        console.print(f"  {name:14} {what}", highlight=False)
