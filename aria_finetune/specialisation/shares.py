"""Specialisation of experts in modalities, as the Aria paper measures it (arXiv 2410.05993, section 4.2). Only arithmetic.

Of a layer and an expert, R_v is the share of the choices by visual tokens that fell on the expert, among all choices by visual
tokens in that layer, and R_t the same for text tokens; the specialisation is R_v / R_t.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

TEXT, IMAGE, VIDEO, PAGE = "text", "image", "video", "page"
DOMAINS = (TEXT, IMAGE, VIDEO, PAGE)
"""Kinds of tokens: text, still images, frames of videos, pages of documents."""
VISUAL = (IMAGE, VIDEO, PAGE)
LEAST_SHARE = 0.5
"""Of the even share: with less R_v an expert is not called visual, whatever its ratio."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def shares(load_LDE: Ints) -> Floats:
    """R of every domain, (layers, domains, experts); NaN for a domain without tokens."""
    total_LD1 = load_LDE.sum(-1, keepdims=True).astype(np.float64)
    found_LDE: Floats = np.full(load_LDE.shape, np.nan)
    np.divide(load_LDE, total_LD1, out=found_LDE, where=total_LD1 > 0)
    return found_LDE


def ratios(load_LDE: Ints) -> Floats:
    """R_v / R_t of every visual domain, (layers, visual domains, experts).

    Infinite where visual tokens chose an expert and no text token did; NaN where neither did, or where the data have no tokens
    of the domain, or no text.
    """
    share_LDE = shares(load_LDE)
    visual_LVE, text_L1E = share_LDE[:, 1:], share_LDE[:, :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_LVE: Floats = visual_LVE / text_L1E
    return ratio_LVE


def visual_experts(load_LDE: Ints, threshold: float) -> dict[str, list[list[int]]]:
    """Experts by visual domain and layer whose ratio is at least `threshold`, with `LEAST_SHARE` of the even share or more."""
    enough_LVE = shares(load_LDE)[:, 1:] >= LEAST_SHARE / load_LDE.shape[-1]
    found_LVE = enough_LVE & (ratios(load_LDE) >= threshold)
    return {
        domain: [np.flatnonzero(found_E).tolist() for found_E in found_LVE[:, number]]
        for number, domain in enumerate(VISUAL)
        if load_LDE[:, number + 1].any()
    }


def shared_by_all(found: dict[str, list[list[int]]]) -> list[list[int]]:
    """By layer, the experts that are visual in every domain there is; without a domain none."""
    layers = [list(map(set, by_layer)) for by_layer in found.values()]
    return [sorted(set.intersection(*sets)) for sets in zip(*layers, strict=True)]


def table(load_LDE: Ints) -> dict[str, list[Any]]:
    """Columns with a line for every layer, domain and expert: choices, share, and for visual domains the ratio."""
    layers, domains, experts = load_LDE.shape
    share_LDE = shares(load_LDE)
    ratio_LDE = np.concatenate([np.full((layers, 1, experts), np.nan), ratios(load_LDE)], axis=1)
    return {
        "layer": np.repeat(np.arange(layers), domains * experts).tolist(),
        "domain": [domain for _ in range(layers) for domain in DOMAINS for _ in range(experts)],
        "expert": np.tile(np.arange(experts), layers * domains).tolist(),
        "choices": load_LDE.ravel().tolist(),
        "share": share_LDE.ravel().tolist(),
        "ratio": ratio_LDE.ravel().tolist(),
    }
