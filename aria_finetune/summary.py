"""What a run prints about itself: its rows, the model in memory, where everything is, the picture of its losses. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aria_finetune.durations import duration
from aria_finetune.libraries import names_local_model
from aria_finetune.material import Material
from aria_finetune.model.parts import Component
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import (
    PICTURE_FILE,
    REJECTS_FILE,
    ROUTING_FILE,
    ROUTING_PICTURE,
    ROWS_FILE,
    SKIPPED_FILE,
    RunFolder,
)


def show_rows(material: Material, console: Console) -> None:
    """Print how many rows there are and how many were rejected, with the reasons."""
    for kind, rows in (("training", material.train_rows), ("evaluation", material.eval_rows)):
        counts = rows.counts()
        if not counts["rows"] and not counts["rejected"]:
            continue
        console.print(f"{kind}: {rows.describe()}", highlight=False)
        for reason, count in rows.reasons().items():
            console.print(f"  rejected: {count} {reason}", highlight=False)
        lost = sum(plan.lost is not None for plan in rows.plans)
        if lost:
            console.print(f"  lost since the run began, and skipped: {lost}", highlight=False)


def show_base(recipe: Recipe, material: Material, console: Console) -> None:
    """Warn of a base model that may be another one tomorrow."""
    if recipe.model.revision is None and not names_local_model(recipe.model.path):
        console.print(
            f"warning: model.revision is not set; today {recipe.model.path} is {material.checkpoint.folder.name}. "
            "Set it to that commit, so that --resume and merge find the same weights",
            highlight=False,
        )


def show_components(parts: list[Component], console: Console) -> None:
    """Print the table of bytes per component, and where those are that are not on the device."""
    table = Table(title="model in memory")
    homes = sorted({part.home for part in parts})
    for column in ("part", "parameters", "dtype", "MiB"):
        table.add_column(column, justify="left" if column in {"part", "dtype"} else "right")
    for part in parts:
        table.add_row(_with_home(part.name, part.home), *_amounts([part], part.dtype))
    for home in homes:
        table.add_row(_with_home("total", home), *_amounts([part for part in parts if part.home == home]))
    console.print(table)


def _with_home(name: str, home: str) -> str:
    return name if home == "device" else f"{name} ({home})"


def _amounts(parts: Iterable[Component], dtype: str = "") -> tuple[str, str, str]:
    parts = list(parts)
    size = sum(part.bytes for part in parts)
    return f"{sum(part.parameters for part in parts):,}", dtype, f"{size / 2**20:,.2f}"


def show_result(run: RunFolder, seconds: float, console: Console) -> None:
    """Print where everything is."""
    console.print(f"done in {duration(seconds)}; everything is in {run.path}/", highlight=False)
    for name, what in (
        ("adapter/", "the adapter, with tokenizer and processor"),
        ("run.json", "recipe, versions, counts, memory, losses"),
        ("metrics.jsonl", "a line per logged step"),
        (PICTURE_FILE, "training and evaluation loss"),
        (ROUTING_FILE, "where tokens were routed, by layer"),
        (ROUTING_PICTURE, "load of the experts, and how routing went"),
        (REJECTS_FILE, "rows that were not used, and why"),
        (ROWS_FILE, "the rows it was trained on, by place and hash"),
        (SKIPPED_FILE, "rows whose media could not be read when it was their turn"),
    ):
        if not (run.path / name).exists():
            continue
        console.print(f"  {name:14} {what}", highlight=False)


def draw_losses(metrics: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw training and evaluation loss over steps as PNG; without a logged loss nothing is drawn."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second that only this needs)

    entries = list(metrics)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    drawn = False
    for key, label, marker in (("loss", "training", ""), ("eval_loss", "evaluation", "o")):
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker)
            drawn = True
    if not drawn:
        return
    axes.set(xlabel="step", ylabel="loss per labelled token (nats)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
