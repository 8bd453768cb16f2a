"""TRL's SFTTrainer for Aria: image features outside the graph, fp32 adapters, one order of rows.

A subclass and nothing else; TRL's fused lm_head, its loss and the Trainer's loop stay as they are. Knows the
batch that the collator makes, not files or recipes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AriaProcessor, TrainerCallback
from trl import SFTConfig, SFTTrainer

from aria_finetune.adapter.saving import save_adapter
from aria_finetune.data.chat import IGNORED
from aria_finetune.data.dataset import EpochOrder
from aria_finetune.errors import UserError
from aria_finetune.memory import peak_memory_gib
from aria_finetune.model.lora import adapter_state
from aria_finetune.model.vision import as_encoder_outputs, image_features

Batch = dict[str, Any]
TILE_KEYS = ("pixels_490", "extents_490", "pixels_980", "extents_980", "tile_order")


@dataclass(frozen=True)
class ErrorsAsBatches:
    """A collator that hands a user's error over as a batch.

    Raised in a worker of the loader, its message would arrive with the worker's traceback in it.
    """

    collator: Callable[[Sequence[Mapping[str, int]]], Batch]

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """The collator's batch, or `{"user_error": error}`."""
        try:
            return self.collator(features)
        except UserError as error:
            return {"user_error": error}


@dataclass(frozen=True)
class RowNames:
    """What the trainer needs to know of rows: how many there are and what to call one in a message."""

    train: int
    evaluation: int
    name: Callable[[int], str]


class AriaTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains the adapters of a PEFT-wrapped Aria.

    Args:
        model: Aria with fp32 adapters.
        args: TRL's configuration; `dataset_kwargs` must skip preparation.
        collator: makes batches from features `{"row": index}`.
        rows: how many rows there are. Training rows come first, evaluation rows behind them.
        order: gives the rows of an epoch.
        processor: saved beside the adapter.
        callbacks: of transformers' Trainer.
    """

    def __init__(
        self,
        model: PeftModel,
        args: SFTConfig,
        collator: Callable[[Sequence[Mapping[str, int]]], Batch],
        *,
        rows: RowNames,
        order: EpochOrder,
        processor: AriaProcessor,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        # TRL rounds the adapters of a 4-bit model to bf16, where AdamW at 5e-5 moves 4 entries in 10 and a
        # resumed run differs. They are put back as they were.
        adapters = {name: parameter.data.clone() for name, parameter in adapter_state(model).items()}
        super().__init__(
            model=model,
            args=args,
            data_collator=ErrorsAsBatches(collator),
            train_dataset=Dataset.from_dict({"row": list(range(rows.train))}),
            eval_dataset=_dataset(range(rows.train, rows.train + rows.evaluation)),
            processing_class=processor,
            callbacks=callbacks,
        )
        for name, parameter in adapter_state(model).items():
            parameter.data = adapters[name]
        self._row_names = rows
        self._order = order
        self._last_rows: Sequence[int] = ()
        self.seen: Counter[str] = Counter()
        self._logged: Counter[str] = Counter()
        self._logged_at = time.monotonic()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochOrder:  # noqa: ARG002 (Trainer's)
        return self._order

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        for batch in batch_samples:
            _raise_carried(batch)
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: PeftModel,
        inputs: Batch,
        return_outputs: bool = False,  # noqa: FBT001, FBT002 (TRL's signature)
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss, with the features of the frozen vision tower computed first and without gradient."""
        _raise_carried(inputs)
        tiles = {key: inputs.pop(key) for key in TILE_KEYS if key in inputs}
        rows = inputs.pop("rows").tolist()
        features = image_features(self.accelerator.unwrap_model(model).get_base_model(), tiles)
        if features is not None:
            inputs["mm_encoder_outputs"] = as_encoder_outputs(features)
        if self.model.training:
            self._count(inputs, tiles)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._refuse_non_finite(result[0] if return_outputs else result, rows)
        return result

    def _count(self, inputs: Batch, tiles: Batch) -> None:
        self.seen["rows"] += len(inputs["input_ids"])
        self.seen["tokens"] += int(inputs["attention_mask"].sum())
        self.seen["labels"] += int((inputs["labels"] != IGNORED).sum())
        self.seen["tiles"] += len(tiles.get("tile_order", ()))

    def _get_grad_norm(self, model: PeftModel, grad_norm: Any = None) -> Any:
        """The Trainer asks for it just before the update: a gradient that is not finite goes no further."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            raise UserError(
                f"the gradient is not finite at step {self.state.global_step + 1}, whose last row(s) were "
                f"{self._names(self._last_rows)}; no update was made",
                fix="lower train.learning_rate, or look at the rows of this step",
            )
        return norm

    def _names(self, rows: Sequence[int]) -> str:
        return ", ".join(self._row_names.name(row) for row in rows)

    def _refuse_non_finite(self, loss: torch.Tensor, rows: Sequence[int]) -> None:
        """Stop before a bad loss reaches an update; the Trainer alone would finish with NaN in every adapter."""
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, in row(s) {self._names(rows)}; "
                "this step made no update",
                fix="look at these rows, or lower train.learning_rate",
            )
        self._last_rows = rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add rates, memory and the time left to what transformers and TRL log."""
        if "loss" in logs:
            now = time.monotonic()
            seconds = max(now - self._logged_at, 1e-9)
            logs["tokens_per_second"] = (self.seen["tokens"] - self._logged["tokens"]) / seconds
            logs["images_per_second"] = (self.seen["tiles"] - self._logged["tiles"]) / seconds
            logs["peak_memory_gib"] = peak_memory_gib(self.args.device.type)
            logs["seconds_left"] = self._seconds_left(now)
            self._logged, self._logged_at = Counter(self.seen), now
        super().log(logs, start_time)

    def _seconds_left(self, now: float) -> float:
        done = max(self.state.global_step - self._started_step, 1)
        return float((now - self._started_at) / done * (self.state.max_steps - self.state.global_step))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the clock for rates starts here."""
        self._started_at = self._logged_at = time.monotonic()
        self._started_step = self.state.global_step
        with deterministic(enabled=self.args.device.type == "cpu"):
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; its time is not counted against training's rates."""
        begun = time.monotonic()
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self._logged_at += time.monotonic() - begun
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:  # noqa: ARG002
        """Write the adapter as `save_adapter` does, instead of also pickling the arguments."""
        save_adapter(
            self.accelerator.unwrap_model(self.model), output_dir or self.args.output_dir, self.processing_class
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none into checkpoints: a card belongs to what is exported."""


@contextmanager
def deterministic(*, enabled: bool) -> Iterator[None]:
    """Ask torch for the same bits every time, which costs nothing on a CPU.

    Without it the gradient of a gather adds up in whatever order its threads come.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    if enabled and not before:
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


def _raise_carried(batch: Batch) -> None:
    if "user_error" in batch:
        raise batch["user_error"]


def _dataset(rows: range) -> Dataset | None:
    return Dataset.from_dict({"row": list(rows)}) if len(rows) else None
