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
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    # Placed by hand: matplotlib's layout engine would draw all of it three times, and this is drawn at every save.
    figure = Figure(figsize=(11, 7))
    upper = figure.add_gridspec(
        1, 3, left=0.06, right=0.93, bottom=0.55, top=0.95, width_ratios=[1, 1, 0.03], wspace=0.06
    )
    maps = [figure.add_subplot(upper[0, place]) for place in range(2)]
    for axes, line, when in zip(maps, (lines[0], lines[-1]), ("first", "last"), strict=True):
        shades = axes.imshow(
            _relative(line["load"]), vmin=0, vmax=SHADES, cmap="magma", aspect="auto", interpolation="nearest"
        )
        axes.set(title=f"load at the {when} log, step {line['step']}", xlabel="expert")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    maps[0].set_ylabel("layer")
    maps[1].tick_params(labelleft=False)
    figure.colorbar(shades, cax=figure.add_subplot(upper[0, 2]), label="times the even share", extend="max")
    lower = figure.add_gridspec(1, 3, left=0.08, right=0.985, bottom=0.08, top=0.44, wspace=0.38)
    panels = [figure.add_subplot(lower[0, place]) for place in range(3)]
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
