"""What one run will take, from a recipe, its planned rows and the device it is for. Reckons; reads and prints nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from aria_finetune.memory import GIB
from aria_finetune.planner.architecture import Architecture
from aria_finetune.planner.cards import Card
from aria_finetune.planner.resident import adapter_bytes, model_components
from aria_finetune.planner.step import Batch, Device, Phase, Setup
from aria_finetune.planner.work import ASSUMED_EFFICIENCY, Work
from aria_finetune.planning.past import PastRun
from aria_finetune.planning.setup import Rows, epoch_work, epochs, setup_of, steps
from aria_finetune.recipe import Recipe

LONGEST = 65_536
"""Tokens of Aria's context, beyond which no longer row is looked for."""
OF_ROWS = ("loss", "backward")
"""Phases that grow with the length of a row."""
STORED_WIDTH = 2
"""Bytes of a weight that is not packed, in the file of an NF4 checkpoint."""
TIGHT = 0.95
"""Share of the memory from which on a plan that may be a tenth off is called tight."""


@dataclass(frozen=True)
class Machine:
    """What a plan is made for: `cuda` or `cpu`, its name, its memory in bytes, and its best bf16 operations per second."""

    device: Device
    name: str
    memory: int
    flops_per_second: float | None = None

    @classmethod
    def of_card(cls, card: Card) -> Machine:
        """A card that need not be there."""
        return cls("cuda", card.name, int(card.memory_gib * GIB), card.teraflops * 1e12)


@dataclass(frozen=True)
class Outlook:
    """A recipe on its rows, on a machine. On a CPU the weights of a checkpoint that is NF4 already stay `mapped` files."""

    recipe: Recipe
    architecture: Architecture
    rows: Rows
    machine: Machine
    mapped: bool = False

    @cached_property
    def setup(self) -> Setup:
        """Model, adapter and way to compute."""
        return setup_of(self.recipe, self.architecture, self.machine.device, pictures=self.rows.pictures)

    @cached_property
    def batches(self) -> tuple[Batch, Batch | None]:
        """The largest micro-batch of training, and of evaluation if there is any."""
        return self.rows.largest(self.recipe)

    @cached_property
    def phases(self) -> list[Phase]:
        """What the run holds in each of its phases."""
        return self.setup.phases(*self.batches)

    @cached_property
    def peak(self) -> Phase:
        """The fullest of them."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def needed_bytes(self) -> int:
        """What there must be: the peak, and of mapped weights only what is made of them."""
        return self.peak.bytes - (self._mapped_bytes() if self.mapped else 0)

    @property
    def fits(self) -> bool:
        """Whether that is within the machine's memory."""
        return self.needed_bytes <= self.machine.memory

    @property
    def tight(self) -> bool:
        """Whether it is so close to it that it may not be."""
        return self.fits and self.needed_bytes > TIGHT * self.machine.memory

    @property
    def measurable_bytes(self) -> int:
        """The peak as a run measures it: above the bare process, without mapped files, on a GPU what torch has allocated."""
        runtime = self.peak.parts.get("runtime", 0) if self.machine.device == "cuda" else 0
        return self.needed_bytes - runtime

    def _mapped_bytes(self) -> int:
        """Parts that are used as the file has them: not the routers, which are read as fp32, nor what changes its dtype."""
        holding = self.setup.holding
        parts = model_components(self.architecture, holding)
        as_stored = {part.name for part in parts if part.dtype == "nf4" or holding.width == STORED_WIDTH}
        made = {"router"} | ({"lm_head"} if holding.packed_head else set())
        return sum(part.bytes for part in parts if part.name in as_stored - made)

    def peak_of(self, recipe: Recipe) -> int:
        """The need in bytes of another recipe on the same rows, shown as that one says; this one's where none is left."""
        other = replace(self, recipe=recipe)
        return other.needed_bytes if other.batches[0].tokens else self.needed_bytes

    def longest_row(self) -> int:
        """Tokens of the longest row, all in the loss, that fits as the recipe stands; 0 if none does."""
        mapped = self._mapped_bytes() if self.mapped else 0
        if any(phase.bytes - mapped > self.machine.memory for phase in self.phases if phase.name not in OF_ROWS):
            return 0
        low, high = 0, LONGEST
        while low < high:
            middle = (low + high + 1) // 2
            if self.setup.peak(Batch(1, middle, middle)).bytes - mapped <= self.machine.memory:
                low = middle
            else:
                high = middle - 1
        return low

    @cached_property
    def work(self) -> Work:
        """Operations of the whole run's training; pictures whose features are kept are seen once."""
        share = epochs(self.recipe, self.rows)
        epoch = epoch_work(
            self.rows,
            self.architecture,
            checkpointing=self.setup.execution.checkpointing,
            tower_trained="vision" in self.recipe.lora.targets,
        )
        seen = min(share, 1.0) if self.setup.execution.cached else share
        return replace(epoch.times(share), vision=epoch.vision * seen)

    def seconds(self, last: PastRun | None = None) -> float | None:
        """How long training takes: at the rate of the last run, else at a share of the machine's; None if it has none."""
        if last is not None and last.flops_per_second:
            return self.work.total / last.flops_per_second
        if self.machine.flops_per_second is None:
            return None
        return self.work.total / (self.machine.flops_per_second * ASSUMED_EFFICIENCY)

    @property
    def parameters(self) -> int:
        """Weights of the base model, by which runs on another are told apart."""
        return sum(math.prod(shape) for _, shape in self.architecture.weights())

    def adapter_bytes(self) -> tuple[int, int, int]:
        """Bytes of the adapter, its gradients and the optimizer's state."""
        return adapter_bytes(self.setup.adapter, self.architecture)

    def feature_bytes(self) -> int:
        """Of the features of all pictures, if none is shown twice."""
        plans = [*self.rows.training.plans, *self.rows.evaluation.plans]
        tokens = self.rows.viewing.vision_tokens
        shown = sum(tokens[sight.tile] * sight.tiles for plan in plans for sight in plan.sights)
        return shown * self.architecture.hidden * self.setup.holding.width

    def promise(self, last: PastRun | None = None) -> dict[str, Any]:
        """What `run.json` keeps of the plan, to be held against what is measured."""
        return {
            "peak_gib": self.measurable_bytes / GIB,
            "phase": self.peak.name,
            "seconds": self.seconds(last),
            "flops": self.work.total,
            "parameters": self.parameters,
            "steps": steps(self.recipe, self.rows),
        }

    def components(self) -> list[Mapping[str, Any]]:
        """The model's parts with their bytes."""
        return [
            {
                "name": part.name,
                "parameters": part.parameters,
                "dtype": part.dtype,
                "bytes": part.bytes,
                "on": part.home,
            }
            for part in model_components(self.architecture, self.setup.holding)
        ]
