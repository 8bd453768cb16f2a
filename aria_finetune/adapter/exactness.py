"""Whether merged weights are to the bit what they should be: every tensor read again, what is due computed anew.

Two checkpoints are read side by side, a tensor at a time and of stacks of experts an expert at a time; of tensors that are copies some rows at a
time. Knows adapters and checkpoints on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import safe_open

from aria_finetune.adapter.mixture import Mixture
from aria_finetune.model.hub_layout import HubCheckpoint

PIECE_VALUES = 1 << 22
"""Of a copied tensor about so many are compared at a time."""


@dataclass(frozen=True)
class Exactness:
    """What was found.

    Attributes:
        merged: how many tensors are round(W32 + delta32), as `merge` defines it, to the bit.
        copied: how many others have the base's own bytes.
        wrong: the names of those that do not.
    """

    merged: int
    copied: int
    wrong: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As `merge.json` has it."""
        return asdict(self)

    def describe(self) -> str:
        """A line for people."""
        wrong = f", {len(self.wrong)} are wrong, such as {self.wrong[0]}" if self.wrong else ""
        return (
            f"{self.merged} merged tensors are to the bit what they should be, {self.copied} others the base's{wrong}"
        )


def check_tensors(mixture: Mixture, base: HubCheckpoint, merged: HubCheckpoint) -> Exactness:
    """Compare every tensor of `merged`, which has the layout of `base`, with what it should be."""
    right, wrong = {True: 0, False: 0}, []
    for name in base.stored:
        is_changed = name in mixture.weights
        pieces = _due(mixture, base, merged, name) if is_changed else _copies(base, merged, name)
        if all(_same_bytes(due, found) for due, found in pieces):
            right[is_changed] += 1
        else:
            wrong.append(name)
    return Exactness(right[True], right[False], tuple(sorted(wrong)))


def _due(
    mixture: Mixture, base: HubCheckpoint, merged: HubCheckpoint, name: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What a changed tensor should be and is; of a stack of experts one after the other."""
    weight = base.read(name)
    with _opened(merged, name) as found:
        for number, (exact, _) in enumerate(mixture.changes(name, weight)):
            yield exact.to(weight.dtype), found[number : number + 1][0] if weight.ndim > 2 else found[:]


def _copies(base: HubCheckpoint, merged: HubCheckpoint, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    shape = base.stored[name].shape
    if not shape:
        yield base.read(name), merged.read(name)
        return
    rows = max(1, PIECE_VALUES // max(1, math.prod(shape[1:])))
    with _opened(base, name) as due, _opened(merged, name) as found:
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            yield due[start:stop], found[start:stop]


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bits and not values, for which -0 is 0 and NaN is not NaN."""
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


@contextmanager
def _opened(checkpoint: HubCheckpoint, name: str) -> Iterator[Any]:
    with safe_open(checkpoint.folder / checkpoint.files[name], "pt") as opened:
        yield opened.get_slice(name)
