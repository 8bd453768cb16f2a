"""How much disk a run will need, asked before its first step.

Knows recipes, the base model's files and the adapters; writes nothing.
"""

from __future__ import annotations

import math

from peft import PeftModel

from aria_finetune.checkpoint.space import folder_bytes, require_space
from aria_finetune.material import Material
from aria_finetune.model.lora import adapter_state
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import RunFolder
from aria_finetune.trainer import AriaTrainer

STATE_PER_ADAPTER_BYTE = 2
"""AdamW keeps two numbers for each trained one."""
SPARE_BYTES = 2**20
DISK_REMEDY = "free some space, lower train.save_total_limit or lora.rank, or set output.dir to another disk"
PROCESSOR_SUFFIXES = (".json", ".jinja", ".model", ".txt")
"""Endings of the files of tokenizer and processor, which go into every checkpoint."""


def checkpoint_bytes(model: PeftModel, material: Material) -> int:
    """About how large a checkpoint is: adapter, optimizer, and the processor's files as the base has them."""
    adapter = sum(tensor.numel() * tensor.element_size() for tensor in adapter_state(model).values())
    small = folder_bytes(material.checkpoint.folder, PROCESSOR_SUFFIXES)
    return adapter * (1 + STATE_PER_ADAPTER_BYTE) + small + SPARE_BYTES


def check_space(recipe: Recipe, run: RunFolder, trainer: AriaTrainer) -> None:
    """Refuse a run whose checkpoints can't all be kept, before its first step.

    Raises:
        UserError: fewer bytes are free than the checkpoints to come will need; both are named.
    """
    keep = trainer.keeping.keep
    saves = planned_saves(recipe, trainer.updates_per_epoch)
    kept = saves if keep is None else min(keep, saves)
    # One more is written before the oldest goes, and the adapter comes at the end.
    one = trainer.keeping.expected_bytes
    require_space(
        run.path,
        max(one * (kept + 2) - run.bytes_to_go(), one * 2),
        f"a run that keeps {kept} checkpoint(s), one being written beside them, and the adapter",
        DISK_REMEDY,
    )


def planned_saves(recipe: Recipe, updates_per_epoch: int) -> int:
    """How many checkpoints a run will write if nothing stops it; at least one, for what may stop it."""
    train, steps = recipe.train, planned_steps(recipe, updates_per_epoch)
    interval = {"no": steps, "steps": train.save_steps, "epoch": updates_per_epoch}[train.save_strategy]
    return max(math.ceil(steps / interval), 1)


def planned_steps(recipe: Recipe, updates_per_epoch: int) -> int:
    """How many optimizer steps a run will make if nothing stops it."""
    train = recipe.train
    return train.max_steps if train.max_steps > 0 else math.ceil(train.num_train_epochs * updates_per_epoch)
