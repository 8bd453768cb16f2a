"""A training run, from the recipe to the adapter: the page of verbs.

The recipe stops here; everything below takes plain values.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from aria_finetune.adapter.files import adapter_hashes, open_adapter
from aria_finetune.advice import explain_out_of_memory
from aria_finetune.checkpoint.space import explain_full_disk
from aria_finetune.data.begun import read_begun_rows, write_begun_rows
from aria_finetune.data.chat import IGNORED
from aria_finetune.data.collation import Batch
from aria_finetune.data.dataset import RowSet, write_rejects
from aria_finetune.data.pictures import Shown
from aria_finetune.data.rows import Sight, as_prompt
from aria_finetune.data_formats.record import Media
from aria_finetune.disk_need import check_space
from aria_finetune.errors import UserError
from aria_finetune.feature_cache import RunFeatures, check_feature_folder, run_features
from aria_finetune.interruption import Interrupted, Interruption
from aria_finetune.layer_progress import LayerProgress
from aria_finetune.material import Material, build_collator, choose_device, load_base, prepare
from aria_finetune.memory import MemoryMeter
from aria_finetune.model.absent import Part
from aria_finetune.model.base_identity import identity_of
from aria_finetune.model.loading import Watch
from aria_finetune.model.loftq import LOFTQ, start_from_error
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora, saved_names
from aria_finetune.model.nf4_checkpoint import is_nf4
from aria_finetune.model.noise import add_noise
from aria_finetune.model.offloading import LayerInputs
from aria_finetune.model.parts import Component
from aria_finetune.model.routing_losses import LossWeights
from aria_finetune.model.routing_watch import RoutingWatch
from aria_finetune.model.targets import SEEING
from aria_finetune.planning import choose_machine, outlook_of_run, refuse_unfit
from aria_finetune.planning.page import show_expectation
from aria_finetune.planning.setup import Rows
from aria_finetune.progress import ProgressReport
from aria_finetune.recipe import Recipe
from aria_finetune.resumption import Start, check_identity, find_start, identify
from aria_finetune.routing_picture import draw_routing
from aria_finetune.run_folder import (
    ANSWERS_FILE,
    METRICS_FILE,
    PICTURE_FILE,
    REJECTS_FILE,
    ROUTING_FILE,
    ROUTING_PICTURE,
    ROWS_FILE,
    SKIPPED_FILE,
    RunFolder,
    begun_run,
    check_run_folder,
    open_run_folder,
    resume_run_folder,
)
from aria_finetune.run_report import describe_result, describe_run
from aria_finetune.run_size import DISK_REMEDY, checkpoint_bytes
from aria_finetune.sources import build_batches, build_viewing
from aria_finetune.staging import staged_folder, sync, sync_tree
from aria_finetune.summary import draw_losses, show_base, show_components, show_result, show_rows
from aria_finetune.trainer import (
    AnswerCheck,
    AriaTrainer,
    EarlyStopping,
    Feed,
    Keeping,
    NumberGuard,
    RoutingAccount,
    SkippedRows,
    Watching,
    choose_questions,
)
from aria_finetune.trainer.answers import Question
from aria_finetune.trainer.loader import end_workers

INLINE_MEDIA = "media"
"""Folder of a run for pictures that its data hold inline (data URIs)."""
FINISHED = "finished"
PLAN_ERROR = 0.1
"""By how much of the memory a plan may be above it before a run is refused."""


def train(recipe: Recipe, console: Console, *, resume: bool = False, interruption: Interruption | None = None) -> Path:
    """Run a recipe; returns the run's folder.

    Args:
        recipe: what to do.
        console: where to say how it goes.
        resume: go on with the run in the recipe's folder from its newest sealed checkpoint; where none is there,
            begin, and where it is finished already, only say so.
        interruption: says whether a signal came; once training began it is obeyed at the end of a step.

    Raises:
        UserError: anything about recipe, checkpoint, data or disk that the user can mend.
        Interrupted: a signal came. If training began, a checkpoint of that moment is sealed.
    """
    interruption = interruption or Interruption()
    resume = resume and begun_run(recipe.output_dir)
    check_run(recipe, resume=resume)
    with _folder(recipe, resume=resume) as run:
        if is_finished(run):
            console.print(f"the run in {run.path}/ is finished; its adapter is in {run.adapter}/", highlight=False)
            return run.path
        try:
            _run(recipe, run, find_start(run.path, console) if resume else Start(), console, interruption)
        finally:
            end_workers()
    return run.path


def _folder(recipe: Recipe, *, resume: bool) -> AbstractContextManager[RunFolder]:
    if resume:
        return resume_run_folder(recipe.output_dir)
    return open_run_folder(recipe.output_dir, overwrite=recipe.output.overwrite)


def _run(recipe: Recipe, run: RunFolder, start: Start, console: Console, interruption: Interruption) -> None:
    began, memory = time.monotonic(), MemoryMeter(choose_device(recipe))
    skips = start.checkpoint is not None and recipe.data.on_bad_media == "skip"
    begun = read_begun_rows(run.path / ROWS_FILE) if skips else None
    material = prepare(recipe, run.path / INLINE_MEDIA, begun=begun)
    check_groups(recipe, material)
    recipe.adapted_layers(_decoder_layers(material))
    check_start(recipe, material)
    check_seeing(recipe, material)
    check_questions(recipe, material)
    show_base(recipe, material, console)
    show_rows(material, console)
    identity = identify(recipe, material)
    if start.checkpoint:
        check_identity(start.values["identity"], identity, start.checkpoint, console)
    expected = expect(recipe, material, console, going_on=start.checkpoint is not None)
    with run_features(recipe, material, console) as features:
        unused: Part | None = None if material.has_pictures and features is None else "vision"
        with (
            explain_out_of_memory(recipe, choose_device(recipe), "loading"),
            LayerProgress("loading the model", console) as loading,
        ):
            model, parts = build_model(recipe, run, material, loading, without=unused)
        memory.begin()
        show_components(parts, console)
        progress = ProgressReport(run, console)
        trainer = build_trainer(
            recipe, run, material, model, progress, features=features, identity=identity, interruption=interruption
        )
        check_space(recipe, run, trainer)
        description = describe_run(recipe, material, parts, start)
        description["plan"] = expected
        if features is not None:
            description["image_features"] = features.describe()
        with interruption.deferred():
            run.begin(description)
            if start.checkpoint is None:
                run.cut_logs({})
                write_begun_rows(material.plans, run.path / ROWS_FILE)
            write_rejects([*material.train_rows.rejects, *material.eval_rows.rejects], run.path / REJECTS_FILE)
            longest = max(plan.tokens for plan in material.plans)
            with (
                _stop_told(run, description, trainer, progress),
                explain_out_of_memory(recipe, choose_device(recipe), "training", longest=longest),
                explain_full_disk(run.path, trainer.keeping.expected_bytes, "the run", DISK_REMEDY),
            ):
                trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
            with explain_full_disk(run.path, trainer.keeping.expected_bytes, "the adapter", DISK_REMEDY):
                write_adapter(trainer, run)
                metrics = run.entries(METRICS_FILE)
                draw_losses(metrics, run.path / PICTURE_FILE)
                draw_routing(run.entries(ROUTING_FILE), run.path / ROUTING_PICTURE)
                result = describe_result(trainer, metrics, began)
                done = trainer.state.global_step / max(expected["steps"], 1)
                measured = {"peak_gib": memory.peak_gib(), "flops": expected["flops"] * done}
                sha256 = adapter_hashes(run.adapter)
                run.write({"status": FINISHED, **description, **result, "measured": measured, "adapter_sha256": sha256})
    show_result(run, time.monotonic() - began, console)


def expect(recipe: Recipe, material: Material, console: Console, *, going_on: bool = False) -> dict[str, Any]:
    """What the run is expected to take, said in a line and as `run.json` keeps it.

    On a CPU, which may have swap, and where a run goes on, which fitted before, it only warns.

    Raises:
        UserError: it can't fit on the GPU, by more than plans are off.
    """
    viewing = build_viewing(recipe, material.checkpoint)
    rows = Rows(material.train_rows, material.eval_rows, viewing, material.chat, recipe.train.seed)
    outlook, last = outlook_of_run(recipe, material.checkpoint, rows, choose_machine(recipe))
    if outlook.machine.device == "cuda" and not going_on:
        refuse_unfit(outlook, tolerance=PLAN_ERROR)
    promise = outlook.promise(last)
    show_expectation(outlook, last, console)
    return promise


@contextmanager
def _stop_told(
    run: RunFolder, description: Mapping[str, Any], trainer: AriaTrainer, progress: ProgressReport
) -> Iterator[None]:
    """Whatever ends training before its end is kept in `run.json`, and the bar is closed before it is told."""
    try:
        yield
    except BaseException as error:
        reason = str(error) if isinstance(error, Interrupted) else type(error).__name__
        with suppress(OSError):  # a full disk is what may have stopped it
            run.write({"status": "stopped", "stopped_by": reason, **description})
        if isinstance(error, Interrupted):
            progress.say(f"a checkpoint is sealed after step {trainer.state.global_step}; go on with --resume")
        raise
    finally:
        progress.close()


def write_adapter(trainer: AriaTrainer, run: RunFolder) -> None:
    """Write the run's adapter folder, whole or not at all."""
    shutil.rmtree(run.adapter, ignore_errors=True)
    with staged_folder(run.adapter) as folder:
        trainer.write_adapter(folder)
        sync_tree(folder)
    sync(run.path)


def is_finished(run: RunFolder) -> bool:
    """Whether the run says so and its adapter can be read."""
    if run.describe().get("status") != FINISHED:
        return False
    try:
        open_adapter(run.adapter)
    except UserError:
        return False
    return True


def dry_run(recipe: Recipe, console: Console, *, resume: bool = False) -> Batch:
    """Validate everything short of the weights, build one batch and print its shape; nothing is left on disk."""
    check_run(recipe, resume=resume and begun_run(recipe.output_dir))
    with tempfile.TemporaryDirectory() as store:
        material = prepare(recipe, Path(store), decode_media=True)
        check_groups(recipe, material)
        recipe.adapted_layers(_decoder_layers(material))
        check_start(recipe, material)
        check_seeing(recipe, material)
        check_questions(recipe, material)
        show_rows(material, console)
        first = next(iter(build_batches(recipe, material.train_rows)))
        collator = build_collator(recipe, material, on_bad_media="fail", packed=recipe.data.packing)
        batch = collator([{"row": row} for row in first])
    lengths = batch.pop("lengths", None)
    if lengths is not None:
        console.print(f"  {len(lengths)} rows in one, of {', '.join(map(str, lengths))} tokens", highlight=False)
    for name, tensor in batch.items():
        console.print(f"  {name:16} {tuple(tensor.shape)!s:22} {str(tensor.dtype).removeprefix('torch.')}")
    labels = int((batch["labels"] != IGNORED).sum())
    console.print(f"one batch: {labels} of {batch['labels'].numel()} tokens in the loss; no weight was loaded")
    return batch


def check_run(recipe: Recipe, *, resume: bool = False) -> None:
    """Refuse early what a run would only meet after its weights are loaded.

    Raises:
        UserError: the run folder is in use, image features are to lie in it, there is no such device, or a tracker is
            not installed.
    """
    if not resume:
        check_run_folder(recipe.output_dir, overwrite=recipe.output.overwrite)
    choose_device(recipe)
    check_feature_folder(recipe)
    for tracker in recipe.train.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"train.report_to names {tracker}, which is not installed",
                where=str(recipe.file),
                fix=f"pip install 'aria-finetune[{tracker}]', or set train.report_to=none",
            )


def build_model(
    recipe: Recipe, run: RunFolder, material: Material, watch: Watch | None = None, *, without: Part | None = None
) -> tuple[PeftModel, list[Component]]:
    """The base model with fresh adapters; `watch` is told of its layers as they are loaded."""
    loaded = load_base(recipe, watch, without=without)
    plan = LoraPlan(
        targets=recipe.lora.targets,
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        dropout=recipe.lora.dropout,
        rslora=recipe.lora.rslora,
        layers=recipe.adapted_layers(_decoder_layers(material)),
        dora=recipe.lora.dora,
    )
    base_name = (
        keep_tiny_base(run, material) if recipe.model.path == "tiny" else str(Path(recipe.model.path).expanduser())
    )
    model = add_lora(loaded.model, plan, base_name=base_name, seed=recipe.train.seed, revision=recipe.model.revision)
    if recipe.lora.init == LOFTQ:
        start_from_error(model, material.checkpoint.read, saved_names)
    if recipe.train.neftune_noise_alpha is not None:
        add_noise(model, recipe.train.neftune_noise_alpha)
    if recipe.train.activation_offloading:
        LayerInputs(model)
    return model, loaded.components


def keep_tiny_base(run: RunFolder, material: Material) -> str:
    """Copy the packaged tiny Aria into the run, so that its adapter names a base that loads from where we are."""
    base = run.path / "base"
    if not base.exists():
        with staged_folder(base) as folder:
            shutil.copytree(material.checkpoint.folder, folder, dirs_exist_ok=True)
    return os.path.relpath(base)


def build_trainer(
    recipe: Recipe,
    run: RunFolder,
    material: Material,
    model: PeftModel,
    progress: ProgressReport,
    *,
    features: RunFeatures | None = None,
    identity: dict[str, Any] | None = None,
    interruption: Interruption | None = None,
) -> AriaTrainer:
    """TRL's trainer around all of it."""
    plans = material.plans

    def name(row: int) -> str:
        return plans[row].record.id

    guard = NumberGuard(name, recipe.train.spike_factor)
    skipped = SkippedRows(lambda entry: run.append(SKIPPED_FILE, entry), progress.say)
    companions: dict[str, Any] = {"logs": progress, "guard": guard, "skipped": skipped}
    callbacks: list[TrainerCallback] = [progress]
    if recipe.train.early_stopping_patience is not None:
        stopping = EarlyStopping(recipe.train.early_stopping_patience)
        companions["early_stopping"] = stopping
        callbacks.append(stopping)
    watching = Watching(
        guard,
        skipped,
        interruption or Interruption(),
        progress.say,
        build_account(recipe, run, model),
        build_check(recipe, run, material, progress, features),
    )
    trainer = AriaTrainer(
        model,
        build_arguments(recipe, run),
        build_collator(recipe, material, packed=recipe.data.packing, features=features.stored if features else None),
        feed=Feed(
            len(material.train_rows.plans),
            len(material.eval_rows.plans),
            build_batches(recipe, material.train_rows),
        ),
        processor=material.processor,
        watching=watching,
        keeping=Keeping(
            recipe.train.save_total_limit,
            identity or {},
            checkpoint_bytes(_adapter_bytes(model), material.checkpoint.folder, start=recipe.lora.init == LOFTQ),
            companions,
            identity_of(material.checkpoint),
        ),
        callbacks=callbacks,
        loraplus_lr_ratio=recipe.lora.loraplus_lr_ratio,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def build_account(recipe: Recipe, run: RunFolder, model: PeftModel) -> RoutingAccount | None:
    """What adds the routers' losses, logs them, and keeps an account of their routing, if the recipe wants any of it."""
    losses = LossWeights(recipe.balance_loss, recipe.z_loss, recipe.moe.balance_group)
    if not recipe.watches_routing:
        return None
    append = partial(run.append, ROUTING_FILE) if recipe.moe.health else None
    return RoutingAccount(RoutingWatch(model, losses), append, losses.group)


def build_check(
    recipe: Recipe, run: RunFolder, material: Material, progress: ProgressReport, features: RunFeatures | None
) -> AnswerCheck | None:
    """What answers held-out rows at every evaluation, if the recipe wants that."""
    train = recipe.train
    if not train.evaluate_generation or recipe.eval_strategy == "no":
        return None
    questions = questions_of(recipe, material)
    if len(questions) < train.evaluate_generation:
        progress.say(
            f"train.evaluate_generation is {train.evaluate_generation}; {len(questions)} held-out rows have an answer"
        )

    def stored(number: int, media: Media, sights: Sequence[Sight]) -> dict[Shown, list[torch.Tensor]]:
        assert features is not None  # noqa: S101 (else it is not asked)
        return features.stored(questions[number].row, media, sights)

    prompts = replace(material, train_rows=RowSet(), eval_rows=RowSet([question.plan for question in questions]))
    return AnswerCheck(
        questions,
        build_collator(recipe, prompts, generation=True, features=stored if features else None),
        train.max_new_tokens,
        train.per_device_eval_batch_size,
        partial(run.append, ANSWERS_FILE),
        progress.say,
    )


def questions_of(recipe: Recipe, material: Material) -> list[Question]:
    """The held-out rows that are answered at every evaluation.

    Raises:
        UserError: none has a known answer.
    """
    plans, first = material.eval_rows.plans, len(material.train_rows.plans)
    count, seed = recipe.train.evaluate_generation, recipe.train.seed
    return choose_questions(plans, count, seed, partial(as_prompt, chat=material.chat), first)


def check_questions(recipe: Recipe, material: Material) -> None:
    """Refuse before the weights are loaded to answer rows whose answers nobody knows.

    Raises:
        UserError: no held-out row has a known answer.
    """
    if recipe.train.evaluate_generation and recipe.eval_strategy != "no":
        questions_of(recipe, material)


def check_groups(recipe: Recipe, material: Material) -> None:
    """Refuse groups that the experts of the base can't be split into.

    Raises:
        UserError: they can't.
    """
    experts = int(material.checkpoint.config["text_config"]["moe_num_experts"])
    if recipe.watches_routing and experts % recipe.moe.balance_group:
        raise UserError(
            f"{experts} experts can't be split into groups of {recipe.moe.balance_group}",
            where=f"{recipe.file}: moe.balance_group",
            fix=f"choose a number that divides {experts}, such as {math.gcd(experts, 8)}",
        )


def check_start(recipe: Recipe, material: Material) -> None:
    """Refuse a start of the adapters that needs weights the base doesn't have.

    Raises:
        UserError: the weights that were packed are needed, and the base has them packed.
    """
    if recipe.lora.init == LOFTQ and is_nf4(material.checkpoint):
        raise UserError(
            "lora.init: loftq starts from what packing lost, and this checkpoint has the packed weights alone",
            where=str(material.checkpoint.folder),
            fix="name the original weights as model.path, which are then packed as they are loaded, or leave lora.init out",
        )


def _decoder_layers(material: Material) -> int:
    return int(material.checkpoint.config["text_config"]["num_hidden_layers"])


def check_seeing(recipe: Recipe, material: Material) -> None:
    """Refuse to train tower or projector where nothing is to be seen.

    Raises:
        UserError: no row has a picture, so that their adapters would never have a gradient.
    """
    seeing = [target for target in recipe.lora.targets if target in SEEING]
    if seeing and not material.train_rows.has_pictures:
        raise UserError(
            f"lora.targets has {' and '.join(seeing)}, and no training row has a picture to learn from",
            where=str(recipe.file),
            fix="add data with images or videos, or leave them out",
        )


def _adapter_bytes(model: PeftModel) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in adapter_state(model).values())


def batches_ahead(workers: int, accumulation: int) -> int | None:
    """How many batches each worker makes ahead: a step takes all of its micro-batches at once, and the next are to be there.

    None where there is no worker.
    """
    return math.ceil(accumulation / workers) + 1 if workers else None


def build_arguments(recipe: Recipe, run: RunFolder) -> SFTConfig:
    """TRL's configuration. Names under `train` are its own and go through as they are."""
    train = recipe.train
    device = choose_device(recipe)
    passed_on = train.model_dump(
        exclude={
            "warmup_ratio",
            "early_stopping_patience",
            "report_to",
            "spike_factor",
            "save_total_limit",
            "activation_offloading",  # ours, see model/offloading.py
            "neftune_noise_alpha",  # ours, see model/noise.py
            "evaluate_generation",  # ours, see trainer/answers.py
            "max_new_tokens",
        }
    )
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
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        accelerator_config={"non_blocking": device == "cuda"},  # copies from pinned memory then wait for nothing
        dataloader_persistent_workers=train.dataloader_num_workers > 0,
        dataloader_prefetch_factor=batches_ahead(train.dataloader_num_workers, train.gradient_accumulation_steps),
        prediction_loss_only=True,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        **passed_on,
    )
    # One GPU, also where more are visible: transformers would split batches over all of them.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001
    return arguments
