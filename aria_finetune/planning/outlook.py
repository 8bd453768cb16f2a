"""What one run will take, from a recipe, its planned rows and the device it is for. Reckons; reads and prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from aria_finetune.planner.architecture import Architecture
from aria_finetune.planner.cards import Card
from aria_finetune.planner.resident import adapter_bytes, model_components
from aria_finetune.planner.step import Batch, Device, Phase, Setup
from aria_finetune.planner.work import ASSUMED_EFFICIENCY, Work
from aria_finetune.planning.past import PastRun
from aria_finetune.planning.setup import Rows, epoch_work, epochs, setup_of, steps
from aria_finetune.recipe import Recipe

GIB = 2**30
LONGEST = 65_536
"""Tokens of Aria's context, beyond which no longer row is looked for."""
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
    def phases(self) -> list[Phase]:
        """What the run holds in each of its phases."""
        return self.setup.phases(*self.rows.largest(self.recipe))

    @cached_property
    def peak(self) -> Phase:
        """The fullest of them."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the machine's memory."""
        return self.peak.bytes <= self.machine.memory

    @property
    def tight(self) -> bool:
        """Whether it is so close to it that it may not be."""
        return self.fits and self.peak.bytes > TIGHT * self.machine.memory

    @property
    def measurable_bytes(self) -> int:
        """The peak as a run measures it: above the bare process, without mapped files, on a GPU what torch has allocated."""
        if self.machine.device == "cuda":
            return self.peak.bytes - self.peak.parts.get("runtime", 0)
        return max(phase.bytes - (self._mapped_bytes() if self.mapped else 0) for phase in self.phases)

    def _mapped_bytes(self) -> int:
        """Everything but the routers, which are read as fp32."""
        parts = model_components(self.architecture, self.setup.holding)
        return sum(part.bytes for part in parts if part.name != "router")

    def peak_of(self, recipe: Recipe) -> int:
        """The peak in bytes of another recipe on the same rows, shown as that one says."""
        rows = self.rows.under(recipe)
        return replace(self, recipe=recipe, rows=rows).peak.bytes if rows.training.plans else 0

    def longest_row(self) -> int:
        """Tokens of the longest row, all in the loss, that fits as the recipe stands; 0 if none does."""
        low, high = 0, LONGEST
        while low < high:
            middle = (low + high + 1) // 2
            row = Batch(1, middle, middle)
            if self.setup.peak(row).bytes <= self.machine.memory:
                low = middle
            else:
                high = middle - 1
        return low

    @cached_property
    def work(self) -> Work:
        """Operations of the whole run's training."""
        epoch, share = epoch_work(self.rows, self.architecture), epochs(self.recipe, self.rows)
        return Work(*(part * share for part in (epoch.decoder, epoch.attention, epoch.vision, epoch.head)))

    def seconds(self, last: PastRun | None = None) -> float | None:
        """How long training takes: at the rate of the last run, else at a share of the machine's; None if it has none."""
        if last is not None and last.flops_per_second:
            return self.work.total / last.flops_per_second
        if self.machine.flops_per_second is None:
            return None
        return self.work.total / (self.machine.flops_per_second * ASSUMED_EFFICIENCY)

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
