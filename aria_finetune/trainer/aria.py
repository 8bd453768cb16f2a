"""The trainer for Aria: image features from a forward of our own, fp32 adapters, one order of rows, sound numbers.

A subclass and nothing else; TRL's loss and metrics (of labels that we score) and the Trainer's loop stay as they are. Knows the
batch that the collator makes, not files or recipes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import AriaProcessor, TrainerCallback
from trl import SFTConfig

from aria_finetune.adapter.saving import TrainedCheck, save_adapter
from aria_finetune.data.chat import IGNORED
from aria_finetune.data.packing import MicroBatches
from aria_finetune.errors import TooManyRejects
from aria_finetune.interruption import Interruption, shield_worker
from aria_finetune.memory import peak_memory_gib
from aria_finetune.model.absent import MODULES
from aria_finetune.model.documents import document_places
from aria_finetune.model.dropout import assign_packed_rows, assign_rows, row_seed
from aria_finetune.model.lora import MAGNITUDE, adapter_state
from aria_finetune.model.vision import as_encoder_outputs, image_features
from aria_finetune.trainer.answers import AnswerCheck
from aria_finetune.trainer.guards import NumberGuard
from aria_finetune.trainer.learning_rates import speed_up
from aria_finetune.trainer.loader import Batch, ErrorsAsBatches, SkippedRows, is_empty, raise_carried, real_tokens
from aria_finetune.trainer.resumable import EvaluationStopped, Keeping, ResumableTrainer
from aria_finetune.trainer.routing import RoutingAccount
from aria_finetune.trainer.scored_head import ScoredHeadModel
from aria_finetune.trainer.waiting import DataWait

TILE_KEYS = ("pixels_490", "extents_490", "pixels_980", "extents_980", "tile_order", "features")

OVER_SESSIONS = ("train_samples_per_second", "train_steps_per_second", "total_flos")
"""What the Trainer would log at the end: all steps of a run over the seconds of its last session."""


@dataclass(frozen=True)
class Feed:
    """How many rows there are, training rows first and evaluation rows behind them, and those of each micro-batch."""

    train: int
    evaluation: int
    batches: MicroBatches


@dataclass(frozen=True)
class Watching:
    """Who watches a run: its numbers, its unreadable rows, signals, routing, its answers; `say` prints a line for the user."""

    guard: NumberGuard
    skipped: SkippedRows
    interruption: Interruption = field(default_factory=Interruption)
    say: Callable[[str], None] = print
    routing: RoutingAccount | None = None
    answers: AnswerCheck | None = None


class AriaTrainer(ResumableTrainer):
    """Trains the adapters of a PEFT-wrapped Aria.

    Args:
        model: Aria with fp32 adapters.
        args: TRL's configuration; `dataset_kwargs` must skip preparation.
        collator: makes batches from features `{"row": index}`.
        feed: which rows there are, and how an epoch is cut up into micro-batches.
        processor: saved beside the adapter.
        watching: guards against bad numbers and bad rows, knows of signals, and of what routers are trained on and do.
        keeping: how checkpoints are kept.
        callbacks: of transformers' Trainer.
        loraplus_lr_ratio: of the learning rate of B matrices over that of all else; None for the same.
    """

    def __init__(
        self,
        model: PeftModel,
        args: SFTConfig,
        collator: Callable[[Sequence[Mapping[str, int]]], Batch],
        *,
        feed: Feed,
        processor: AriaProcessor,
        watching: Watching,
        keeping: Keeping | None = None,
        callbacks: list[TrainerCallback] | None = None,
        loraplus_lr_ratio: float | None = None,
    ) -> None:
        # TRL rounds the adapters of a 4-bit model to bf16, where AdamW at 5e-5 moves 4 entries in 10 and a
        # resumed run differs. They are put back as they were.
        adapters = {name: parameter.data.clone() for name, parameter in adapter_state(model).items()}
        super().__init__(
            model=model,
            args=args,
            data_collator=ErrorsAsBatches(collator),
            train_dataset=Dataset.from_dict({"row": list(range(feed.train))}),
            eval_dataset=_dataset(range(feed.train, feed.train + feed.evaluation)),
            processing_class=processor,
            callbacks=callbacks,
            keeping=keeping,
            interruption=watching.interruption,
        )
        for name, parameter in adapter_state(model).items():
            parameter.data = adapters[name]
        self._batches = feed.batches
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._watching = watching
        self._routing = watching.routing
        self._step_tokens = 0
        self._waiting = DataWait(self.args.dataloader_num_workers, watching.say)
        self._trained = TrainedCheck(adapters)
        self.seen: Counter[str] = Counter()
        self._logged: Counter[str] = Counter()
        self._logged_step = self._empty_steps = self._rows_before = 0
        self._logged_at = time.monotonic()
        self._started_step = 0

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, once; with B matrices in groups of their own where they learn faster."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made and self._loraplus_lr_ratio is not None:
            speed_up(optimizer, dict(self.model.named_parameters()), self._loraplus_lr_ratio)
        return optimizer

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """The Trainer's, but for DoRA's magnitudes: decay pulls what is learned to zero, and a magnitude of zero is no weight at all."""
        return [name for name in super().get_decay_parameter_names(model) if MAGNITUDE not in name]

    def get_train_dataloader(self) -> Any:
        """A loader of the micro-batches; the Trainer's own knows none of different numbers of rows."""
        arguments = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory,
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
        )
        return self._steady(self.accelerator.prepare(loader))

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        return self._steady(super()._get_dataloader(*args, **kwargs))

    def _steady(self, loader: Any) -> Any:
        # Accelerate's loader iterates over one inside of it, and copies its own attributes when it skips batches.
        for one in (loader, loader.base_dataloader):
            one.worker_init_fn = shield_worker
            # Loaders draw a seed for their workers; from the global generator, a resumed run would be off by some.
            one.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _run_epoch(self, **kwargs: Any) -> None:
        # A loader that skips the first batches of a resumed epoch does not pass its number on to the order.
        self._batches.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of an optimizer step."""
        self._watching.guard.begin_step()
        self._rows_before = self.seen["rows"]
        return super().get_batch_samples(self._waiting.timed(epoch_iterator), *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        for batch in batch_samples:
            raise_carried(batch)
        full = [batch for batch in batch_samples if not is_empty(batch)]
        self._step_tokens = sum(map(real_tokens, full))
        return super()._get_num_items_in_batch(full, device)

    def training_step(self, model: PeftModel, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Loss and gradient of a micro-batch; one whose rows were all unreadable has none."""
        self._watching.skipped.take(inputs, self.state.global_step + 1, training=True)
        if is_empty(inputs):
            return torch.zeros((), device=self.args.device)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def prediction_step(self, model: PeftModel, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """Loss of an evaluation batch; one whose rows were all unreadable has none."""
        raise_carried(inputs)
        self._watching.skipped.take(inputs, self.state.global_step, training=False)
        if is_empty(inputs):
            return None, None, None
        return super().prediction_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: PeftModel,
        inputs: Batch,
        return_outputs: bool = False,  # noqa: FBT001, FBT002 (TRL's signature)
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss, with image features computed first, and without gradient unless tower or projector are trained."""
        tiles = {key: inputs.pop(key) for key in TILE_KEYS if key in inputs}
        rows, lengths = inputs.pop("rows").tolist(), inputs.pop("lengths", None)
        aria = self.accelerator.unwrap_model(model).get_base_model()
        features = image_features(aria, tiles)
        if features is not None:
            inputs["mm_encoder_outputs"] = as_encoder_outputs(features)
        if self.model.training:
            self._count(inputs, tiles, rows=len(rows))
            seeds = [row_seed(self.args.seed, self._batches.order.epoch, row) for row in rows]
            if lengths is None:
                assign_rows(aria, seeds, inputs["attention_mask"])
            else:
                assign_packed_rows(aria, seeds, lengths)
        if lengths is not None:
            inputs |= document_places(lengths, inputs["input_ids"].device)
        called = ScoredHeadModel(model, aria, self.accelerator.autocast)
        with self._routed(inputs):
            result = super().compute_loss(called, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if self.model.training and not loss.requires_grad:
            loss.requires_grad_()  # a micro-batch without a picture, where nothing but the tower or the projector is trained
        self._watching.guard.check_loss(loss.item(), rows, self._place())
        return result

    def _routed(self, inputs: Batch) -> AbstractContextManager[None]:
        """The forward of a micro-batch, of which the account of routing is to know."""
        if self._routing is None or not self.model.training:
            return nullcontext()
        tokens = real_tokens(inputs)
        return self._routing.watch.recording(inputs.get("attention_mask"), tokens, tokens / self._step_tokens)

    def _place(self) -> str:
        step = self.state.global_step
        return f"at step {step + 1}" if self.model.training else f"in the evaluation after step {step}"

    def _count(self, inputs: Batch, tiles: Batch, *, rows: int) -> None:
        self.seen["rows"] += rows
        self.seen["tokens"] += real_tokens(inputs)
        self.seen["labels"] += int((inputs["labels"] != IGNORED).sum())
        self.seen["tiles"] += len(tiles.get("tile_order", ()))

    def _get_grad_norm(self, model: PeftModel, grad_norm: Any = None) -> Any:
        """The Trainer asks for it just before the update: what must make none goes no further."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.seen["rows"] == self._rows_before:
            self._empty_steps += 1
        guard, step = self._watching.guard, self.state.global_step + 1
        guard.check_gradient(float(norm), self._place())
        spike = guard.spike(float(norm))
        if spike is not None:
            self.seen["spikes"] += 1
            self._watching.say(f"step {step}: no update: {spike}")
            model.zero_grad(set_to_none=True)  # the optimizer passes over parameters without a gradient
        elif float(norm) > 0 and self._get_learning_rate() > 0:
            self.seen["updates"] += 1
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add rates, memory and the time left to what transformers and TRL log."""
        if "loss" in logs:
            self._pass_over_empty_steps(logs)
        if "loss" in logs:
            now = time.monotonic()
            seconds = max(now - self._logged_at, 1e-9)
            logs["tokens_per_second"] = (self.seen["tokens"] - self._logged["tokens"]) / seconds
            logs["images_per_second"] = (self.seen["tiles"] - self._logged["tiles"]) / seconds
            logs["data_wait_share"] = self._waiting.take(seconds)
            if self._routing is not None:
                logs |= self._routing.take(self.state.global_step, self._watching.say)
            logs["peak_memory_gib"] = peak_memory_gib(self.args.device.type)
            logs["seconds_left"] = self._seconds_left(now)
            self._logged, self._logged_at = Counter(self.seen), now
        for rate in OVER_SESSIONS:
            logs.pop(rate, None)
        super().log(logs, start_time)

    def _pass_over_empty_steps(self, logs: dict[str, float]) -> None:
        """Make the mean loss that of the steps that had rows, if any had: the others come in as a loss of 0."""
        steps, empty = self.state.global_step - self._logged_step, self._empty_steps
        self._logged_step, self._empty_steps = self.state.global_step, 0
        loss = logs.pop("loss")
        if empty < steps:
            logs["loss"] = loss * (steps / (steps - empty))

    def _seconds_left(self, now: float) -> float:
        done = max(self.state.global_step - self._started_step, 1)
        return float((now - self._started_at) / done * (self.state.max_steps - self.state.global_step))

    def begin(self) -> None:
        """The clock for rates starts here; a resumed run takes up its counters."""
        self._logged_at = time.monotonic()
        self._waiting.begin()
        self._started_step = self.state.global_step
        super().begin()

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows."""
        return math.ceil(len(self._batches) / int(self.args.gradient_accumulation_steps))

    def take_account(self, routing: RoutingAccount) -> None:
        """Keep another account of routing from now on."""
        self._routing = routing

    def meters(self) -> dict[str, Any]:
        """What was added up, as JSON values."""
        routing = self._routing.state() if self._routing is not None else None
        return {**super().meters(), "seen": dict(self.seen), "empty_steps": self._empty_steps, "routing": routing}

    def restore_meters(self, meters: Mapping[str, Any]) -> None:
        """Take over what `meters` gave."""
        super().restore_meters(meters)
        self.seen = Counter(meters["seen"])
        self._logged = Counter(self.seen)
        self._logged_step, self._empty_steps = meters["last_logged_step"], meters["empty_steps"]
        if self._routing is not None and meters["routing"] is not None:
            self._routing.restore(meters["routing"])

    def skipped_reasons(self) -> dict[str, int]:
        """Training rows that could not be read, by reason."""
        return dict(sorted(self._watching.skipped.reasons.items()))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on from `resume_from_checkpoint`."""
        with deterministic(enabled=self.args.device.type == "cpu"):
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; its time is not counted against training's rates.

        Raises:
            TooManyRejects: no row could be read, so that there is no loss to go by.
        """
        begun = time.monotonic()
        with self._watching.skipped.evaluation():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if "eval_loss" not in metrics:
            raise TooManyRejects(
                f"no row could be read {self._place()}",
                fix="see whether their media are still there; --resume goes on from the last checkpoint",
            )
        self._logged_at += time.monotonic() - begun
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; then held-out rows are answered, if that is wanted.

        Raises:
            EvaluationStopped: a signal came.
        """
        output = super().evaluation_loop(*args, **kwargs)
        answers = self._watching.answers
        if answers is not None:
            base = self.accelerator.unwrap_model(self.model).get_base_model()
            means = answers.run(
                self.model, base, self.state.global_step, lambda: not (self.is_in_train and self.is_interrupted())
            )
            if means is None:
                raise EvaluationStopped
            output.metrics.update({f"eval_{name}": mean for name, mean in means.items()})
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:  # noqa: ARG002
        """Write the adapter as `save_adapter` does, instead of also pickling the arguments."""
        self.write_adapter(Path(output_dir or self.args.output_dir))

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter as it is now, with tokenizer and processor, and check it.

        Raises:
            UserError: training has not reached every adapter.
        """
        model = self.accelerator.unwrap_model(self.model)
        save_adapter(model, folder, self.processing_class, self.keeping.base)
        # The best checkpoint was checked when it was sealed, and may rightly be from before the first update.
        if self.seen["updates"] and not self.best_loaded:
            self._trained.check(self._reached(model))

    def _reached(self, model: PeftModel) -> dict[str, torch.Tensor]:
        """Adapters that rows so far have had something for: without a picture yet, none of tower and projector."""
        state = adapter_state(model)
        if self.seen["tiles"]:
            return state
        return {name: tensor for name, tensor in state.items() if not any(part in name for part in MODULES["vision"])}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none into checkpoints: a card belongs to what is exported."""


@contextmanager
def deterministic(*, enabled: bool) -> Iterator[None]:
    """Ask torch for the same bits every time, which costs nothing on a CPU.

    Without it the gradient of a gather adds up in whatever order its threads come.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic  # its attribute is known at run time only
    filled = filling.fill_uninitialized_memory
    if enabled and not before:
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        # With it every tensor that is about to be written would be filled with NaN first, for those who read too early.
        filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
        filling.fill_uninitialized_memory = filled


def _dataset(rows: range) -> Dataset | None:
    return Dataset.from_dict({"row": list(rows)}) if len(rows) else None
