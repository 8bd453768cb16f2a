"""The picture of a run's routing: load of every expert, and how entropy, losses and changes went. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SHADES = 4.0
"""The heat map ends at so many times the even share."""


def draw_routing(entries: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw lines of `routing.jsonl` as PNG: first and last load, and what became of routing by step; without lines nothing is drawn.

    Args:
        entries: as `RoutingAccount` writes them, in the order of steps.
        path: where the picture goes.
    """
    lines = list(entries)
    if not lines:
        return
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second that only this needs)

    figure = Figure(figsize=(11, 7), layout="constrained")
    rows: Any = figure.subfigures(2, 1, height_ratios=[1.2, 1])
    maps = rows[0].subplots(1, 2, sharey=True)
    for axes, line, when in zip(maps, (lines[0], lines[-1]), ("first", "last"), strict=True):
        shades = axes.imshow(
            _relative(line["load"]), vmin=0, vmax=SHADES, cmap="magma", aspect="auto", interpolation="nearest"
        )
        axes.set(title=f"load at the {when} log, step {line['step']}", xlabel="expert")
        axes.yaxis.get_major_locator().set_params(integer=True)
    maps[0].set_ylabel("layer")
    rows[0].colorbar(shades, ax=list(maps), label="times the even share", extend="max")
    panels = rows[1].subplots(1, 3)
    _draw(panels[0], lines, "entropy", "entropy of the load\n(1: even)", among="lowest layer")
    _draw(panels[1], lines, "balance_loss", "balance loss of groups\n(1: even)", among="highest layer")
    _draw(panels[2], lines, "changed", "tokens sent elsewhere by\nthe router's adapter (share)", among="highest layer")
    figure.savefig(path, dpi=110, format="png")


def _relative(load_LE: Sequence[Sequence[int]]) -> list[list[float]]:
    return [[count * len(load) / max(sum(load), 1) for count in load] for load in load_LE]


def _draw(axes: Any, lines: Sequence[Mapping[str, Any]], key: str, label: str, *, among: str) -> None:
    """The mean over layers and the layer that is furthest."""
    lines = [line for line in lines if None not in line[key]]  # a model that diverged had no numbers
    steps = [line["step"] for line in lines]
    furthest = min if among.startswith("lowest") else max
    axes.plot(steps, [sum(line[key]) / len(line[key]) for line in lines], label="mean of layers")
    axes.plot(steps, [furthest(line[key]) for line in lines], label=among, linestyle="--")
    axes.set(xlabel="step", ylabel=label)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
