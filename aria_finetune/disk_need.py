"""Whether the disk has room for a run, asked before its first step. Writes nothing."""

from __future__ import annotations

from aria_finetune.checkpoint.space import require_space
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import RunFolder
from aria_finetune.run_size import DISK_REMEDY, kept_saves, run_bytes
from aria_finetune.trainer import AriaTrainer


def check_space(recipe: Recipe, run: RunFolder, trainer: AriaTrainer) -> None:
    """Refuse a run whose checkpoints can't all be kept, before its first step.

    Raises:
        UserError: fewer bytes are free than the checkpoints to come will need; both are named.
    """
    kept = kept_saves(recipe, trainer.updates_per_epoch)
    one = trainer.keeping.expected_bytes
    require_space(
        run.path,
        max(run_bytes(one, kept) - run.bytes_to_go(), one * 2),
        f"a run that keeps {kept} checkpoint(s), one being written beside them, and the adapter",
        DISK_REMEDY,
    )
