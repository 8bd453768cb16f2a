"""A training run, from the recipe to the adapter: the page of verbs.

The recipe stops here; everything below takes plain values.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl import SFTConfig

from aria_finetune.adapter.saving import save_adapter
from aria_finetune.data.chat import IGNORED
from aria_finetune.data.collation import Batch
from aria_finetune.data.dataset import EpochOrder, write_rejects
from aria_finetune.errors import UserError
from aria_finetune.material import Material, build_collator, choose_device, load_base, prepare
from aria_finetune.memory import peak_memory_gib
from aria_finetune.model.components import Component
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.progress import ProgressReport
from aria_finetune.recipe import Recipe, resolve_data_path
from aria_finetune.run_folder import (
    PICTURE_FILE,
    REJECTS_FILE,
    RunFolder,
    check_run_folder,
    draw_losses,
    fingerprint,
    open_run_folder,
    versions,
)
from aria_finetune.summary import show_components, show_result, show_rows
from aria_finetune.trainer import AriaTrainer, RowNames

INLINE_MEDIA = "media"
"""Folder of a run for pictures that its data hold inline (data URIs)."""


def train(recipe: Recipe, console: Console) -> Path:
    """Run a recipe; returns the run's folder.

    Raises:
        UserError: anything about recipe, checkpoint or data that the user can mend.
    """
    began = time.monotonic()
    check_run(recipe)
    with open_run_folder(recipe.output_dir, overwrite=recipe.output.overwrite) as run:
        material = prepare(recipe, run.path / INLINE_MEDIA)
        show_rows(material, console)
        model, parts = build_model(recipe, run, material)
        show_components(parts, console)
        progress = ProgressReport(run, console)
        trainer = build_trainer(recipe, run, material, model, progress)
        description = describe_run(recipe, material, parts)
        run.began = True
        run.write({"status": "running", **description})
        write_rejects([*material.train_rows.rejects, *material.eval_rows.rejects], run.path / REJECTS_FILE)
        try:
            trainer.train()
        except BaseException as error:
            run.write({"status": "stopped", "stopped_by": type(error).__name__, **description})
            raise
        finally:
            progress.close()
        save_adapter(model, run.adapter, material.processor)
        draw_losses(run.metrics(), run.path / PICTURE_FILE)
        run.write({"status": "finished", **description, **describe_result(trainer, run, began)})
        show_result(run, time.monotonic() - began, console)
    return run.path


def dry_run(recipe: Recipe, console: Console) -> Batch:
    """Validate everything short of the weights, build one batch and print its shape; nothing is left on disk."""
    check_run(recipe)
    with tempfile.TemporaryDirectory() as store:
        material = prepare(recipe, Path(store), decode_media=True)
        show_rows(material, console)
        order = EpochOrder(material.train_rows.spans, material.train_rows.weights, recipe.train.seed)
        first = list(order)[: recipe.train.per_device_train_batch_size]
        batch = build_collator(recipe, material)([{"row": row} for row in first])
    for name, tensor in batch.items():
        console.print(f"  {name:16} {tuple(tensor.shape)!s:22} {str(tensor.dtype).removeprefix('torch.')}")
    labels = int((batch["labels"] != IGNORED).sum())
    console.print(f"one batch: {labels} of {batch['labels'].numel()} tokens in the loss; no weight was loaded")
    return batch


def check_run(recipe: Recipe) -> None:
    """Refuse early what a run would only meet after its weights are loaded.

    Raises:
        UserError: the run folder is in use, there is no such device, or a tracker is not installed.
    """
    check_run_folder(recipe.output_dir, overwrite=recipe.output.overwrite)
    choose_device(recipe)
    for tracker in recipe.train.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"train.report_to names {tracker}, which is not installed",
                where=str(recipe.file),
                fix=f"pip install 'aria-finetune[{tracker}]', or set train.report_to=none",
            )


def build_model(recipe: Recipe, run: RunFolder, material: Material) -> tuple[PeftModel, list[Component]]:
    """The base model with fresh adapters."""
    loaded = load_base(recipe)
    plan = LoraPlan(
        targets=recipe.lora.targets,
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        dropout=recipe.lora.dropout,
        rslora=recipe.lora.rslora,
    )
    base_name = (
        keep_tiny_base(run, material) if recipe.model.path == "tiny" else str(Path(recipe.model.path).expanduser())
    )
    return add_lora(
        loaded.model, plan, base_name=base_name, seed=recipe.train.seed, revision=recipe.model.revision
    ), loaded.components


def keep_tiny_base(run: RunFolder, material: Material) -> str:
    """Copy the packaged tiny Aria into the run, so that its adapter names a base that loads from where we are."""
    base = run.path / "base"
    shutil.copytree(material.checkpoint.folder, base)
    return os.path.relpath(base)


def build_trainer(
    recipe: Recipe, run: RunFolder, material: Material, model: PeftModel, progress: ProgressReport
) -> AriaTrainer:
    """TRL's trainer around all of it."""
    callbacks: list[TrainerCallback] = [progress]
    if recipe.train.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.train.early_stopping_patience))
    plans = material.plans
    trainer = AriaTrainer(
        model,
        build_arguments(recipe, run),
        build_collator(recipe, material),
        rows=RowNames(len(material.train_rows.plans), len(material.eval_rows.plans), lambda row: plans[row].record.id),
        order=EpochOrder(material.train_rows.spans, material.train_rows.weights, recipe.train.seed),
        processor=material.processor,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def build_arguments(recipe: Recipe, run: RunFolder) -> SFTConfig:
    """TRL's configuration. Names under `train` are its own and go through as they are."""
    train = recipe.train
    device = choose_device(recipe)
    passed_on = train.model_dump(exclude={"warmup_ratio", "early_stopping_patience", "report_to"})
    passed_on |= {"bf16": recipe.bf16, "eval_strategy": recipe.eval_strategy, "eval_steps": recipe.eval_steps}
    best = train.load_best_model_at_end or train.early_stopping_patience is not None
    arguments = SFTConfig(
        output_dir=str(run.path),
        warmup_steps=train.warmup_ratio,  # transformers reads a number below 1 as a share of all steps
        report_to=list(train.report_to) or "none",
        metric_for_best_model="eval_loss" if best else None,
        greater_is_better=False if best else None,
        max_length=None,  # rows are checked when they are planned; nothing is ever cut
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_only_model=True,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        dataloader_persistent_workers=train.dataloader_num_workers > 0,
        prediction_loss_only=True,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        **passed_on,
    )
    # One GPU, also where more are visible: transformers would split batches over all of them.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001
    return arguments


def describe_run(recipe: Recipe, material: Material, parts: list[Component]) -> dict[str, Any]:
    """What `run.json` says of a run before it starts."""
    sources = {
        kind: [
            {"path": section.path, "sha256": fingerprint(resolve_data_path(recipe.file, section.path))} for section in s
        ]
        for kind, s in (("train", recipe.data.train), ("eval", recipe.data.eval))
    }
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe_file": str(recipe.file),
        "recipe": recipe.dump(),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if choose_device(recipe) == "cuda" else "cpu",
        "data": sources,
        "rows": {
            "train": {**material.train_rows.counts(), "reasons": material.train_rows.reasons()},
            "eval": {**material.eval_rows.counts(), "reasons": material.eval_rows.reasons()},
        },
        "components": [asdict(part) for part in parts],
    }


def describe_result(trainer: AriaTrainer, run: RunFolder, began: float) -> dict[str, Any]:
    """What `run.json` says of a run when it is over."""
    metrics = run.metrics()
    losses = [entry["loss"] for entry in metrics if "loss" in entry]
    eval_losses = [entry["eval_loss"] for entry in metrics if "eval_loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "seen": dict(trainer.seen),
        "seconds": round(time.monotonic() - began, 3),
        "peak_memory_gib": round(peak_memory_gib(trainer.args.device.type), 3),
        "losses": {
            "first": losses[0] if losses else None,
            "last": losses[-1] if losses else None,
            "eval_last": eval_losses[-1] if eval_losses else None,
            "eval_best": min(eval_losses) if eval_losses else None,
        },
    }
