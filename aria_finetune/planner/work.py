"""How much arithmetic a row takes, and how long that is at a card's rate. Counts operations; measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aria_finetune.planner.architecture import Architecture

PASSES = 3
"""Forward, its recomputation, and the gradient of the inputs: the weights are frozen and have none."""
ATTENTION_PASSES = 4.5
"""The same with a backward of two and a half forwards, as attention recomputes its scores there."""
ASSUMED_EFFICIENCY = 0.3
"""Share of a card's rate that a step is taken to reach, where no run was measured. Not measured on any card."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one pass over the rows, of training steps with checkpointing."""

    decoder: float
    attention: float
    vision: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.decoder + self.attention + self.vision + self.head

    def times(self, factor: float) -> Work:
        """So many times as much."""
        return Work(self.decoder * factor, self.attention * factor, self.vision * factor, self.head * factor)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.decoder + other.decoder,
            self.attention + other.attention,
            self.vision + other.vision,
            self.head + other.head,
        )


def row_work(
    architecture: Architecture,
    tokens: int,
    labels: int,
    tiles: Mapping[int, int],
    *,
    checkpointing: bool = True,
    tower_trained: bool = False,
) -> Work:
    """Operations of a training step on one row.

    Args:
        architecture: the model's.
        tokens: of the row, image tokens among them.
        labels: tokens in the loss; only they reach the lm_head.
        tiles: tiles by their side in pixels, each of which goes through the vision tower once.
        checkpointing: whether layers are computed again for their backward.
        tower_trained: whether that has a backward too.
    """
    active = sum(
        math.prod(shape) * (architecture.top_k / architecture.experts if name.startswith("mlp.experts.") else 1)
        for name, shape in architecture.decoder_layer()
    )
    width = architecture.heads * architecture.head_dim
    # Scores and their sums: four operations per pair and channel, and half of the pairs, as none looks ahead.
    pairs = 2.0 * tokens * tokens * width * architecture.layers
    saved = 0 if checkpointing else 1
    return Work(
        decoder=2.0 * (PASSES - saved) * active * architecture.layers * tokens,
        attention=(ATTENTION_PASSES - saved) * pairs,
        vision=sum(count * tile_work(architecture, tile) for tile, count in tiles.items())
        * (PASSES - saved if tower_trained else 1),
        head=2.0 * PASSES * architecture.vocabulary * architecture.hidden * labels,
    )


def tile_work(architecture: Architecture, tile: int) -> float:
    """Operations of a forward of the vision tower on one tile of that side."""
    tower = architecture.vision
    patches = tower.patches(tile)
    weights = 4 * tower.hidden**2 + 2 * tower.hidden * tower.width
    return float(tower.layers * (2 * weights * patches + 4 * patches**2 * tower.hidden))
