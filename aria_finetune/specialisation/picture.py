"""The heat maps of specialisation, as figure 1 of the Aria paper (arXiv 2410.05993) has them. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aria_finetune.specialisation.shares import DOMAINS, VISUAL, Ints, ratios

CAP = 50.0
"""Of the ratio, as in the paper: the colours end here."""
TITLES = {"image": "images", "video": "video frames", "page": "PDF pages"}


def draw_maps(loads: Mapping[str, Ints], path: Path) -> None:
    """Draw R_v / R_t by layer and expert as PNG: a row for each way of computing, a column for each visual domain there is.

    Experts that neither visual nor text tokens chose are grey. Where there is no text, or nothing else, nothing is drawn.

    Args:
        loads: by name, such as `base` and `adapter`, choices (layers, domains, experts).
        path: where the picture goes.
    """
    first = next(iter(loads.values()))
    domains = [domain for domain in VISUAL if first[:, DOMAINS.index(domain)].any()]
    if not domains or not first[:, 0].any():
        return
    from matplotlib import colormaps  # noqa: PLC0415 (half a second that only this needs)
    from matplotlib.colors import SymLogNorm  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(1 + 4.5 * len(domains), 1 + 3.2 * len(loads)), layout="constrained")
    panels = figure.subplots(len(loads), len(domains), squeeze=False, sharex=True, sharey=True)
    colours = colormaps["viridis"].with_extremes(bad="lightgrey")
    shades: Any = None
    for row, (name, load_LDE) in zip(panels, loads.items(), strict=True):
        ratio_LVE = ratios(load_LDE)
        for axes, domain in zip(row, domains, strict=True):
            shown = np.ma.masked_invalid(np.minimum(ratio_LVE[:, VISUAL.index(domain)], CAP))
            shades = axes.imshow(
                shown, norm=SymLogNorm(1, vmin=0, vmax=CAP), cmap=colours, aspect="auto", interpolation="nearest"
            )
            axes.set_title(f"{TITLES[domain]}, {name}")
            axes.yaxis.get_major_locator().set_params(integer=True)
        row[0].set_ylabel("layer")
    for axes in panels[-1]:
        axes.set_xlabel("expert")
    figure.colorbar(shades, ax=panels, label=f"share of visual over share of text tokens, capped at {CAP:.0f}")
    figure.savefig(path, dpi=110, format="png")
