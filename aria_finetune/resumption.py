"""Going on with a run: which checkpoint, and whether recipe, data and base are still those it was started with.

Knows recipes, rows and seals. Reads no weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from aria_finetune.checkpoint.retention import clear_leftovers, newest_sealed
from aria_finetune.checkpoint.state import load_values
from aria_finetune.data.begun import fingerprint_row
from aria_finetune.errors import UserError
from aria_finetune.material import Material
from aria_finetune.provenance import fingerprint_objects, fingerprint_weights, versions
from aria_finetune.recipe import Recipe
from aria_finetune.redaction import redact_values
from aria_finetune.sources import build_rope

FREE_KEYS = {
    "model.device",
    "model.embedding",
    "data.cache_image_features",
    "data.cache_limit_gib",
    "data.on_bad_media",
    "data.media_timeout",
    "moe.experts_at_a_time",
    "moe.experts_on",
    "moe.health",
    "train.activation_offloading",
    "train.dataloader_num_workers",
    "train.evaluate_generation",
    "train.gradient_checkpointing",
    "train.logging_steps",
    "train.max_new_tokens",
    "train.report_to",
    "train.save_total_limit",
    "output.dir",
    "output.overwrite",
}
"""Keys that may differ when a run goes on: they change neither its rows nor, rounding aside, its updates."""
EVALUATION_KEYS = {
    "train.eval_strategy",
    "train.eval_steps",
    "train.per_device_eval_batch_size",  # the loss is the mean over batches, each with the mean over its tokens
    "train.save_strategy",
    "train.save_steps",
}
"""They may differ where no evaluation decides which adapter is left, or when training stops."""
FREE_PLACES = re.compile(r"model\.path|data\.(train|eval)\.\d+\.(path|converter|(media_root|companions)(\.\d+)?)")
"""Where things lie may differ as well: what is read there is compared itself."""
BATCH_KEYS = ("train.per_device_train_batch_size", "train.gradient_accumulation_steps")
"""Their product may not differ; where each does, the same rows make each update, up to rounding."""
CUTTING_KEYS = (*BATCH_KEYS, "data.packing")
"""How the rows of an update are cut up into micro-batches."""
ABSENT = "absent"


@dataclass(frozen=True)
class Start:
    """Where a run goes on: a sealed checkpoint with what it carries beside its tensors, or None for the beginning."""

    checkpoint: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int | None:
        """The step after which the checkpoint was sealed."""
        return self.values.get("step")


def find_start(run: Path, console: Console) -> Start:
    """Choose the newest sealed checkpoint of a run and say aloud which were passed over, and why."""
    clear_leftovers(run)
    folder, skipped = newest_sealed(run)
    for broken in skipped:
        console.print(f"skipped {broken.folder.name}: {broken.reason}", highlight=False, soft_wrap=True)
    if folder is None:
        console.print(f"no sealed checkpoint in {run}/: training starts at its beginning", highlight=False)
        return Start()
    start = Start(folder, load_values(folder))
    console.print(f"going on from {folder.name}, sealed after step {start.step}", highlight=False)
    return start


def identify(recipe: Recipe, material: Material) -> dict[str, Any]:
    """What makes a run this run: recipe, planned rows, base checkpoint and its RoPE base, versions."""
    return {
        "recipe": dict(_flat(redact_values(recipe.dump()))),
        "rows": fingerprint_objects(fingerprint_row(plan) for plan in material.plans),
        "base": fingerprint_weights(material.checkpoint.folder, material.checkpoint.shards),
        "rope_theta": build_rope(recipe, material.checkpoint).theta,
        "versions": versions(),
    }


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path, console: Console) -> None:
    """Compare the run that a checkpoint belongs to with the one that is to go on from it.

    Other versions of packages, and a batch cut up in another way, are allowed and said aloud: the run goes on, but
    its last digits may differ.

    Raises:
        UserError: the recipe, the rows, the base weights or the RoPE base are not the same; each difference is named.
    """
    changed = list(_recipe_changes(saved["recipe"], now["recipe"]))
    if changed:
        raise UserError(
            "the recipe is not the one the run was started with:" + "".join(f"\n  {line}" for line in changed),
            where=str(where),
            fix="set these keys back, or start another run with another output.dir",
        )
    for key, what in (
        ("rows", "the rows of data.train and data.eval"),
        ("base", "the base model's weights"),
        ("rope_theta", "the base model's config.json and its RoPE base"),
    ):
        if saved.get(key, now.get(key)) != now.get(key):  # checkpoints from before it was kept have no RoPE base
            raise UserError(
                f"{what} are not those the run was started with",
                where=str(where),
                fix="put the files back as they were, or start another run with another output.dir",
            )
    notes = [_change(key, saved["recipe"], now["recipe"]) for key in CUTTING_KEYS]
    notes += [_change(name, saved["versions"], now["versions"]) for name in now["versions"]]
    for note in filter(None, notes):
        console.print(f"  not as before: {note}; the last digits may differ", highlight=False, soft_wrap=True)


def _recipe_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    free = FREE_KEYS | set(CUTTING_KEYS) | (set() if _evaluation_decides(saved) else EVALUATION_KEYS)
    for key in sorted(set(saved) | set(now)):
        change = _change(key, saved, now)
        if change and key not in free and not FREE_PLACES.fullmatch(key):
            yield change
    if _rows_per_update(saved) != _rows_per_update(now):
        yield from filter(None, (_change(key, saved, now) for key in BATCH_KEYS))


def _evaluation_decides(recipe: Mapping[str, Any]) -> bool:
    return recipe["train.load_best_model_at_end"] or recipe["train.early_stopping_patience"] is not None


def _rows_per_update(recipe: Mapping[str, Any]) -> int:
    rows, micro_batches = (int(recipe[key]) for key in BATCH_KEYS)
    return rows * micro_batches


def _change(key: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    before, after = saved.get(key, ABSENT), now.get(key, ABSENT)
    return None if before == after else f"{key} was {before} and is {after}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of nested mappings and lists joined by dots, with their plain values."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}.{index}")
    else:
        yield path, value
