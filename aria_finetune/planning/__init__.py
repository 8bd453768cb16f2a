"""`plan`: will a run fit, how long will it take, and which keys would change that, before any weight is read.

    made = make_plan(recipe, machine)

Rows are read and planned as training does it; all the rest is arithmetic (`aria_finetune.planner`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from aria_finetune.checkpoint.space import free_bytes, require_space
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.dataset import check_rejects
from aria_finetune.errors import UserError
from aria_finetune.memory import GIB, memory_gib
from aria_finetune.model.hub_layout import CheckpointSettings, open_settings
from aria_finetune.model.settings import load_tokenizer
from aria_finetune.planner.architecture import Architecture
from aria_finetune.planner.cards import card_of, find_card
from aria_finetune.planner.rows import Bin, histogram, quantiles
from aria_finetune.planning.knobs import Saving, fitting, savings
from aria_finetune.planning.outlook import Machine, Outlook
from aria_finetune.planning.past import PastRun, last_run
from aria_finetune.planning.setup import Rows, epoch_rows, steps
from aria_finetune.recipe import Recipe
from aria_finetune.run_size import DISK_REMEDY, checkpoint_bytes, kept_saves, run_bytes, updates_per_epoch
from aria_finetune.sources import RowReader, build_viewing

__all__ = [
    "Machine",
    "Outlook",
    "Plan",
    "choose_machine",
    "make_plan",
    "outlook_of_run",
    "refuse_full_disk",
    "refuse_rejected",
    "refuse_unfit",
]

GPU_SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvhost-ctrl")
"""What is there where a program can reach a GPU of NVIDIA: on Linux, in WSL, on Jetson."""
PROBED = 1024
"""Rows and columns of the product that a CPU's rate is measured by."""


@dataclass(frozen=True)
class Plan:
    """What a run will take. `counting_seconds` is how long reading the rows took."""

    outlook: Outlook
    savings: list[Saving]
    longest_row: int
    seconds: float | None
    last: PastRun | None
    disk: Mapping[str, int]
    counting_seconds: float

    @property
    def histogram(self) -> list[Bin]:
        """Training rows by their tokens."""
        return histogram([plan.tokens for plan in self.outlook.rows.training.plans])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        outlook, rows = self.outlook, self.outlook.rows
        components = outlook.components()
        tokens = [plan.tokens for plan in rows.training.plans]
        return {
            "machine": asdict(outlook.machine),
            "rows": {
                "train": {**rows.training.counts(), "reasons": rows.training.reasons()},
                "eval": {**rows.evaluation.counts(), "reasons": rows.evaluation.reasons()},
                "tokens": quantiles(tokens),
                "histogram": [asdict(part) for part in self.histogram],
                "counting_seconds": round(self.counting_seconds, 3),
            },
            "steps": steps(outlook.recipe, rows),
            "components": components,
            "bytes": {part["name"]: part["bytes"] for part in components},
            "phases": [{"name": phase.name, "bytes": phase.bytes, "parts": phase.parts} for phase in outlook.phases],
            "peak": {"phase": outlook.peak.name, "bytes": outlook.peak.bytes, "gib": outlook.peak.bytes / GIB},
            "host_bytes": outlook.setup.host_bytes(),
            "fits": outlook.fits,
            "tight": outlook.tight,
            "knobs": [{**asdict(saving.knob), "saved_bytes": saving.bytes} for saving in self.savings],
            "longest_row": self.longest_row,
            "disk": dict(self.disk),
            "work": {**asdict(outlook.work), "total": outlook.work.total},
            "estimated_seconds": self.seconds,
            "last_run": None if self.last is None else _as_json(self.last),
        }


def make_plan(recipe: Recipe, machine: Machine) -> Plan:
    """Read and plan the rows of a recipe, and reckon what training on them takes.

    Raises:
        UserError: recipe, tokenizer or data can't be used. A run that does not fit is no error here.
    """
    settings = open_settings(recipe.model.path, recipe.model.revision)
    chat = ChatTokenizer(load_tokenizer(settings))
    viewing = build_viewing(recipe, settings)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as store:
        reader = RowReader(recipe, viewing, chat, Path(store), any_rejects=True)
        rows = Rows(*reader.training_and_evaluation(), viewing, chat, recipe.train.seed)
    counted = time.monotonic() - began
    outlook, last = outlook_of_run(recipe, settings, rows, machine)
    return Plan(
        outlook=outlook,
        savings=savings(recipe, machine.device, outlook.peak_of),
        longest_row=outlook.longest_row(),
        seconds=outlook.seconds(last),
        last=last,
        disk=_disk(outlook, settings.folder),
        counting_seconds=counted,
    )


def choose_machine(recipe: Recipe, *, gpu_memory: float | None = None, card: str | None = None) -> Machine:
    """What to plan for: a card by its name or its memory in GiB, else the device that the recipe would run on here.

    Raises:
        UserError: the card is not known.
    """
    if card is not None:
        known = Machine.of_card(find_card(card))
        return (
            known if gpu_memory is None else Machine("cuda", known.name, int(gpu_memory * GIB), known.flops_per_second)
        )
    if gpu_memory is not None:
        return Machine("cuda", f"a GPU with {gpu_memory:g} GiB", int(gpu_memory * GIB))
    gpu = None if recipe.model.device == "cpu" else _this_gpu()
    if gpu is not None:
        return gpu
    if recipe.model.device == "cuda":
        raise UserError(
            "model.device is cuda, but torch sees no GPU", fix="say for which: --gpu-memory 24, or --card 4090"
        )
    return Machine("cpu", "cpu", int(memory_gib("cpu") * GIB), _cpu_rate())


def refuse_rejected(plan: Plan) -> None:
    """Say after the plan that too many of its records were rejected for a run.

    Raises:
        TooManyRejects: more than `data.max_rejects`.
    """
    for rows in (plan.outlook.rows.training, plan.outlook.rows.evaluation):
        check_rejects(rows.rejects, plan.outlook.recipe.data.max_rejects)


def refuse_full_disk(plan: Plan) -> None:
    """Say after the plan that its checkpoints or image features have no room.

    Raises:
        UserError: fewer bytes are free than they take; both are named.
    """
    recipe, disk = plan.outlook.recipe, plan.disk
    require_space(recipe.output_dir, disk["run"], "the run with its checkpoints", DISK_REMEDY)
    if recipe.feature_folder is not None:
        remedy = "free some space, or name a folder on another disk as data.cache_image_features"
        require_space(recipe.feature_folder, disk["image_features"], "the cache of image features", remedy)


def outlook_of_run(
    recipe: Recipe, settings: CheckpointSettings, rows: Rows, machine: Machine
) -> tuple[Outlook, PastRun | None]:
    """What is to be expected of a run whose rows are planned already, and the last run like it."""
    mapped = machine.device == "cpu" and "quantization_config" in settings.config
    outlook = Outlook(recipe, Architecture.from_config(settings.config), rows, machine, mapped)
    return outlook, last_run(recipe.output_dir, parameters=outlook.parameters, device=machine.name)


def refuse_unfit(outlook: Outlook, *, tolerance: float = 0.0) -> None:
    """Stop before a long wait for weights that leave no room to train.

    Raises:
        UserError: the peak is above the memory by more than `tolerance` of it; it names the knobs that change that, the
            cheapest first.
    """
    if outlook.needed_bytes <= (1 + tolerance) * outlook.machine.memory:
        return
    needed, there = outlook.needed_bytes / GIB, outlook.machine.memory / GIB
    knobs, lowered = fitting(outlook.recipe, outlook.machine.device, outlook.peak_of, outlook.machine.memory)
    settings = " ".join(knob.setting for knob in knobs)
    if lowered <= outlook.machine.memory:
        fix = f"with {settings} it takes {lowered / GIB:.1f} GiB"
    else:
        fix = f"use a larger card; with {settings or 'nothing left to turn'} it still takes {lowered / GIB:.1f} GiB"
    raise UserError(
        f"the run will not fit: it takes {needed:.1f} GiB ({outlook.peak.name}) of the {there:.1f} of {outlook.machine.name}",
        where=str(outlook.recipe.file),
        fix=fix,
    )


def _this_gpu() -> Machine | None:
    if not any(Path(sign).exists() for sign in GPU_SIGNS):
        return None  # and torch, which takes more than a second to import, is not asked
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    card = card_of(name)
    return Machine("cuda", name, int(memory_gib("cuda") * GIB), None if card is None else card.teraflops * 1e12)


@cache
def _cpu_rate() -> float:
    """Operations per second of a product in fp32, the best of three."""
    one = np.ones((PROBED, PROBED), dtype=np.float32)
    return 2.0 * PROBED**3 / min(_seconds(one) for _ in range(3))


def _seconds(one: np.ndarray) -> float:
    began = time.perf_counter()
    _ = one @ one
    return time.perf_counter() - began


def _disk(outlook: Outlook, base: Path) -> dict[str, int]:
    """Bytes that checkpoints, adapter and image features will take at most, and what is free."""
    recipe = outlook.recipe
    updates = updates_per_epoch(recipe, epoch_rows(recipe, outlook.rows))
    one = checkpoint_bytes(outlook.adapter_bytes()[0], base, start=recipe.lora.init == "loftq")
    return {
        "checkpoint": one,
        "run": run_bytes(one, kept_saves(recipe, updates)),
        "image_features": 0 if recipe.feature_folder is None else outlook.feature_bytes(),
        "free": free_bytes(recipe.output_dir),
    }


def _as_json(last: PastRun) -> dict[str, Any]:
    return {**asdict(last), "folder": str(last.folder), "memory_error": last.memory_error}
