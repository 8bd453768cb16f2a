"""How long and how large a run will be: optimizer steps, checkpoints, their bytes.

Knows recipes and the files of a base model; neither the model nor the trainer.
"""

from __future__ import annotations

import math
from pathlib import Path

from aria_finetune.checkpoint.space import folder_bytes
from aria_finetune.recipe import Recipe

STATE_PER_ADAPTER_BYTE = 2
"""AdamW keeps two numbers for each trained one."""
SPARE_BYTES = 2**20
DISK_REMEDY = "free some space, lower train.save_total_limit or lora.rank, or set output.dir to another disk"
PROCESSOR_SUFFIXES = (".json", ".jinja", ".model", ".txt")
"""Endings of the files of tokenizer and processor, which go into every checkpoint."""


def updates_per_epoch(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of one pass over so many rows, as the Trainer counts them."""
    batches = math.ceil(rows / recipe.train.per_device_train_batch_size)
    return math.ceil(batches / recipe.train.gradient_accumulation_steps)


def planned_steps(recipe: Recipe, updates: int) -> int:
    """How many optimizer steps a run of so many in an epoch will make if nothing stops it."""
    train = recipe.train
    return train.max_steps if train.max_steps > 0 else math.ceil(train.num_train_epochs * updates)


def planned_saves(recipe: Recipe, updates: int) -> int:
    """How many checkpoints it will write if nothing stops it; at least one, for what may stop it."""
    train, steps = recipe.train, planned_steps(recipe, updates)
    interval = {"no": steps, "steps": train.save_steps, "epoch": updates}[train.save_strategy]
    return max(math.ceil(steps / interval), 1)


def kept_saves(recipe: Recipe, updates: int) -> int:
    """How many of them are kept."""
    saves, limit = planned_saves(recipe, updates), recipe.train.save_total_limit
    return saves if limit is None else min(limit, saves)


def checkpoint_bytes(adapter: int, base: Path, *, start: bool = False) -> int:
    """About how large a checkpoint is: an adapter of so many bytes, the optimizer, the processor's files as the base has them.

    With `start` what the adapter started as is in it too.
    """
    return adapter * (1 + start + STATE_PER_ADAPTER_BYTE) + folder_bytes(base, PROCESSOR_SUFFIXES) + SPARE_BYTES


def run_bytes(checkpoint: int, kept: int) -> int:
    """Bytes that a run takes at most: one checkpoint more is written before the oldest goes, and the adapter at the end."""
    return checkpoint * (kept + 2)
