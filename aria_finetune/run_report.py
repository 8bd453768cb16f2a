"""What `run.json` says of a run: what it is made of before it starts, what came of it when it is over.

Knows material and trainer; writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from aria_finetune.material import Material, choose_device
from aria_finetune.memory import peak_memory_gib
from aria_finetune.metrics import METRICS
from aria_finetune.model.parts import Component
from aria_finetune.provenance import fingerprint, versions
from aria_finetune.recipe import Recipe, resolve_data_path
from aria_finetune.resumption import Start
from aria_finetune.sources import build_rope
from aria_finetune.trainer import AriaTrainer


def describe_run(recipe: Recipe, material: Material, parts: list[Component], start: Start) -> dict[str, Any]:
    """What `run.json` says of a run before it starts."""
    sources = {
        kind: [
            {"path": section.path, "sha256": fingerprint(resolve_data_path(recipe.file, section.path))} for section in s
        ]
        for kind, s in (("train", recipe.data.train), ("eval", recipe.data.eval))
    }
    return {
        "resumed_from_step": start.step,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe_file": str(recipe.file),
        "recipe": recipe.dump(),
        "base": material.checkpoint.folder.name,
        "rope": asdict(build_rope(recipe, material.checkpoint)),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if choose_device(recipe) == "cuda" else "cpu",
        "data": sources,
        "rows": {
            "train": {**material.train_rows.counts(), "reasons": material.train_rows.reasons()},
            "eval": {**material.eval_rows.counts(), "reasons": material.eval_rows.reasons()},
        },
        "components": [asdict(part) for part in parts],
    }


def describe_result(trainer: AriaTrainer, metrics: Sequence[Mapping[str, Any]], began: float) -> dict[str, Any]:
    """What `run.json` says of a run when it is over; `metrics` are its logged lines."""
    losses = [entry["loss"] for entry in metrics if "loss" in entry]
    scores = {name: entry[f"eval_{name}"] for entry in metrics for name in METRICS if f"eval_{name}" in entry}
    eval_losses = [entry["eval_loss"] for entry in metrics if "eval_loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "seen": dict(trainer.seen),
        "skipped": trainer.skipped_reasons(),
        "seconds": round(time.monotonic() - began, 3),
        "training_seconds": round(trainer.training_seconds, 3),
        "peak_memory_gib": round(peak_memory_gib(trainer.args.device.type), 3),
        "losses": {
            "first": losses[0] if losses else None,
            "last": losses[-1] if losses else None,
            "eval_last": eval_losses[-1] if eval_losses else None,
            "eval_best": min(eval_losses) if eval_losses else None,
        },
        "scores": scores,  # of the last evaluation that answered rows
    }
