"""One adapter or several, each with a weight, as a change of the weights of their base.

What is added up are changes of weights (task arithmetic, arXiv 2212.04089), so that ranks and targets may differ, and DoRA, whose change
is no product of two matrices, may be among them. Knows adapter folders and tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aria_finetune.adapter.files import AdapterFiles, open_adapter
from aria_finetune.errors import UserError
from aria_finetune.model.rope import Rope, read_rope, shown


@dataclass(frozen=True)
class Share:
    """An adapter, and how much of its change is added."""

    files: AdapterFiles
    weight: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """Adapters that are added up; make it with `open_mixture`."""

    shares: tuple[Share, ...]

    @property
    def first(self) -> AdapterFiles:
        """The adapter that was named first, whose base is meant where none is named."""
        return self.shares[0].files

    @property
    def weights(self) -> set[str]:
        """Names in the hub layout of all weights that are changed."""
        return {name for share in self.shares for name in share.files.pairs}

    @property
    def rope(self) -> Rope | None:
        """What they were trained with, None where that was not written."""
        return next((rope for share in self.shares if (rope := read_rope(share.files.folder)) is not None), None)

    def of(self, weight: str) -> list[Share]:
        """Those that change a weight."""
        return [share for share in self.shares if weight in share.files.pairs]

    def shapes(self, weight: str) -> set[tuple[int, ...]]:
        """The shapes of the weight that they were made for."""
        return {share.files.shape(weight) for share in self.of(weight)}

    def changes(self, weight: str, stored: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The new value of a weight and its change, both fp32; of a stack of experts those of one after the other.

        Of one adapter with a weight of 1 the new value is W32 + delta32, and for DoRA that with its rows rescaled.
        """
        shares = self.of(weight)
        places = stored if stored.ndim > 2 else stored[None]
        for place, *deltas in zip(places, *(share.files.deltas(weight) for share in shares), strict=True):
            place_32 = place.float()
            if len(shares) == 1 and shares[0].weight == 1:
                exact = shares[0].files.rescaled(weight, place_32 + deltas[0])
                yield exact, exact - place_32 if shares[0].files.has_magnitudes else deltas[0]
            else:
                change = torch.zeros_like(place_32)
                for share, delta in zip(shares, deltas, strict=True):
                    if share.files.has_magnitudes:
                        delta = share.files.rescaled(weight, place_32 + delta) - place_32  # noqa: PLW2901
                    change += share.weight * delta
                yield place_32 + change, change


def open_mixture(adapters: Sequence[tuple[Path, float]]) -> Mixture:
    """Read adapters, of which there is at least one.

    Raises:
        UserError: one is missing, damaged or can't be merged; or two were trained with different RoPE bases.
            Whether they are of one base is asked by `base.check_one_base`.
    """
    mixture = Mixture(tuple(Share(open_adapter(folder), weight) for folder, weight in adapters))
    first = mixture.first
    for share in mixture.shares[1:]:
        ropes = [read_rope(files.folder) for files in (first, share.files)]
        if None not in ropes and ropes[0] != ropes[1]:
            thetas = " and ".join(shown(rope.theta) for rope in ropes if rope is not None)
            raise UserError(
                f"the adapters were trained with different RoPE bases ({thetas}), and no model has both",
                where=f"{first.folder}, {share.files.folder}",
            )
    return mixture


def parse_adapter(text: str) -> tuple[Path, float]:
    """An adapter's folder and its weight from `FOLDER:WEIGHT`; a folder alone has a weight of 1.

    Raises:
        UserError: what is behind the last colon is no finite number, and there is no such folder.
    """
    folder, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        found = float(weight)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{text!r} is neither a folder nor FOLDER:WEIGHT", fix="write it as --adapter runs/a:0.7")
    return Path(folder), found
