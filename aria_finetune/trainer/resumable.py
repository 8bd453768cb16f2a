"""An SFTTrainer whose runs can be stopped at any moment and go on as if they never had been.

Replaces how transformers' Trainer writes, chooses and reads checkpoints, and nothing of how it trains. Knows
checkpoints and signals, not Aria.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import SFTTrainer

from aria_finetune.adapter.saving import restore_adapter
from aria_finetune.checkpoint.retention import checkpoint_path, checkpoints, rotate
from aria_finetune.checkpoint.sealing import BrokenSeal, check_seal, sealed_bytes, sealed_folder
from aria_finetune.checkpoint.space import explain_full_disk, require_space
from aria_finetune.checkpoint.state import TrainingState, load_generators, load_values, parameter_names
from aria_finetune.errors import UserError
from aria_finetune.interruption import Interruption
from aria_finetune.model.base_identity import BaseIdentity
from aria_finetune.staging import remove_folder
from aria_finetune.trainer.callbacks import Moments


class Companion(Protocol):
    """Something beside the trainer whose state a checkpoint carries."""

    def state(self) -> dict[str, Any]:
        """JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""


@dataclass(frozen=True)
class Keeping:
    """How checkpoints are kept.

    `keep` is how many, None for all; `identity` says which run they belong to; `expected_bytes` is what one is
    taken to need until the first is there; `companions` are saved with the trainer under their names. `base` is what
    the weights that adapters are trained on are known by, which is saved beside them.
    """

    keep: int | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    expected_bytes: int = 0
    companions: Mapping[str, Companion] = field(default_factory=dict)
    base: BaseIdentity | None = None


class EvaluationStopped(Exception):
    """A signal came during an evaluation, which is done anew when the run goes on."""


class ResumableTrainer(SFTTrainer):  # type: ignore[misc]
    """Seals its checkpoints, stops on a signal once one is sealed, and resumes from one bit for bit.

    Args:
        args: of SFTTrainer.
        keeping: how checkpoints are kept.
        interruption: says whether a signal came.
        kwargs: of SFTTrainer.
    """

    def __init__(
        self, *args: Any, keeping: Keeping | None = None, interruption: Interruption | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.keeping = keeping or Keeping()
        self._interruption = interruption or Interruption()
        self._run = Path(self.args.output_dir)
        self._sealed: Path | None = None
        self._passed_over: list[Path] = []
        self._unplanned: list[int] = []
        self.best_loaded = False
        self._resumed: dict[str, Any] | None = None
        self._epoch_ended = False
        self._evaluation_stopped = False
        self._started_at = time.monotonic()
        self._seconds_before = 0.0
        # A reference back would make a cycle, which outlives the loader's queues: each worker would wait 5 s in vain.
        self.add_callback(Moments(weakref.proxy(self)))

    # Saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002 (the Trainer's)
        self.seal()

    def seal(self, *, planned: bool = True) -> Path:
        """Write the checkpoint of this step, unless it is there already; then let older ones go.

        One that is not `planned`, which a signal asked for, never counts as that of the best step: the run that is
        not stopped does not have it.

        Raises:
            UserError: the disk has no room for it; the older checkpoints are whole.
        """
        folder = checkpoint_path(self._run, self.state.global_step)
        if self._sealed == folder:
            return folder
        if folder.exists():
            remove_folder(folder)  # a broken one, passed over when the run was resumed
        if planned:
            self._name_best(folder)
        else:
            self._unplanned.append(self.state.global_step)
        needed = self._needed_bytes()
        remedy = self._disk_remedy()
        require_space(self._run, needed, folder.name, remedy)
        with explain_full_disk(self._run, needed, folder.name, remedy), sealed_folder(folder) as staged:
            self._write(staged)
        self._sealed = folder
        self._remove_passed_over()
        best = self.state.best_model_checkpoint
        rotate(self._run, self.keeping.keep, best=Path(best) if best else None)
        return folder

    def _remove_passed_over(self) -> None:
        """Remove broken checkpoints of later steps: rotation would keep them, as the newest, instead of a new one."""
        for folder in self._passed_over:
            if folder != self._sealed and folder.exists():
                remove_folder(folder)
        self._passed_over = []

    def _write(self, folder: Path) -> None:
        self.store_flos()
        self._save(str(folder))
        # Logged lines are in metrics.jsonl; here they would make every checkpoint longer than the last.
        replace(self.state, log_history=[]).save_to_json(str(folder / TRAINER_STATE_NAME))
        values = {
            "step": self.state.global_step,
            "evaluation_due": self._evaluation_due(),
            "save_due": self._evaluation_stopped and self.control.should_save,
            "best": Path(self.state.best_model_checkpoint).name if self.state.best_model_checkpoint else None,
            "unplanned": self._unplanned,
            "training_seconds": self.training_seconds,
            "identity": dict(self.keeping.identity),
            "meters": self.meters(),
            "companions": {name: companion.state() for name, companion in self.keeping.companions.items()},
        }
        self._training_state().save(folder, values)

    def _training_state(self) -> TrainingState:
        return TrainingState(self.optimizer, self.lr_scheduler, parameter_names(self.model, self.optimizer))

    def _name_best(self, folder: Path) -> None:
        """The best step's folder, if it is this one or was kept."""
        if self.state.best_global_step and self.state.best_global_step not in self._unplanned:
            best = checkpoint_path(self._run, self.state.best_global_step)
            if best == folder or best.exists():
                self.state.best_model_checkpoint = str(best)

    def _needed_bytes(self) -> int:
        try:
            return sealed_bytes(self._sealed) if self._sealed else self.keeping.expected_bytes
        except BrokenSeal:
            return self.keeping.expected_bytes

    def _disk_remedy(self) -> str:
        newest = f"{self._sealed.name} is whole, and --resume goes on from it" if self._sealed else "none is there yet"
        return f"free some space or lower train.save_total_limit; of the checkpoints before it, {newest}"

    def meters(self) -> dict[str, Any]:
        """What was added up since the last log line and since the start, as JSON values."""
        return {
            "loss_since_log": float(self._tr_loss),
            "last_logged_step": self._globalstep_last_logged,
            "total_loss": self._total_loss_scalar,
            "since_log": {name: list(values) for name, values in self._metrics["train"].items()},
            "train_tokens": self._total_train_tokens,
            "training_mode": self.model.training,
        }

    # Resuming

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002 (the Trainer's)
        restore_adapter(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        self._training_state().load(Path(checkpoint))
        self._resumed = load_values(Path(checkpoint))
        self._sealed = Path(checkpoint)
        self._unplanned = list(self._resumed["unplanned"])
        self._restore_best(self._resumed["best"])
        # The state holds the intervals that the run was started with.
        self.state.compute_steps(self.args, self.state.max_steps)

    def _restore_best(self, name: str | None) -> None:
        best = self._run / name if name else None
        self.state.best_model_checkpoint = str(best) if best and best.exists() else None
        if self.state.best_model_checkpoint:
            self._check_best()  # better now than after the last step

    def _check_best(self) -> Path:
        best = Path(self.state.best_model_checkpoint)
        try:
            check_seal(best)
        except BrokenSeal as broken:
            raise UserError(
                f"the best checkpoint so far can't be used: {broken}",
                where=str(best),
                fix="put it back as it was, or remove it to go on without it; each of the others is an adapter folder",
            ) from broken
        return best

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_generators(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: bf16 needs no scaling, and its file would be a pickle."""

    def _load_best_model(self) -> None:
        restore_adapter(self.accelerator.unwrap_model(self.model), self._check_best())
        self.best_loaded = True

    def restore_meters(self, meters: Mapping[str, Any]) -> None:
        """Take over what `meters` gave."""
        self._tr_loss = torch.tensor(meters["loss_since_log"], device=self.args.device)
        self._globalstep_last_logged = meters["last_logged_step"]
        self._total_loss_scalar = meters["total_loss"]
        self._initial_global_step = 0  # the mean loss of a run is that over all of its steps
        for name, values in meters["since_log"].items():
            self._metrics["train"][name] = list(values)
        self._total_train_tokens = meters["train_tokens"]
        self.model.train(meters["training_mode"])  # TRL logs by it: as an evaluation leaves it

    def begin(self) -> None:
        """Called when the Trainer has set all its counters, before the first step."""
        self._passed_over = [path for step, path in checkpoints(self._run).items() if step > self.state.global_step]
        self._started_at = time.monotonic()
        if self._resumed is None:
            return
        self._seconds_before = self._resumed["training_seconds"]
        self.restore_meters(self._resumed["meters"])
        for name, companion in self.keeping.companions.items():
            companion.restore(self._resumed["companions"][name])
        if self._resumed["evaluation_due"]:
            self._catch_up_evaluation()

    def _catch_up_evaluation(self) -> None:
        try:
            metrics = self._evaluate(None, None)
        except EvaluationStopped:
            self._interruption.check()  # the checkpoint we came from still stands for this moment
            raise
        self._determine_best_metric(metrics, None)
        if self._resumed and self._resumed["save_due"]:  # the save that was to follow has been made already
            self._name_best(checkpoint_path(self._run, self.state.global_step))

    def _run_epoch(self, **kwargs: Any) -> None:
        # A run resumed at its last step, or at one where it was to stop early, has nothing left to do.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    @property
    def training_seconds(self) -> float:
        """Time spent in training, that before a resume included."""
        return self._seconds_before + time.monotonic() - self._started_at

    # Stopping

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._evaluation_stopped = False
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationStopped:
            self._evaluation_stopped = True
        if self._interruption.asked is not None and not self._epoch_end_follows():
            self.seal(planned=self.control.should_save)
            self._interruption.check()

    def is_interrupted(self) -> bool:
        """Whether a signal came."""
        return self._interruption.asked is not None

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """One batch of an evaluation, which a signal ends here."""
        if self.is_in_train and self._interruption.asked is not None:
            raise EvaluationStopped
        return super().prediction_step(*args, **kwargs)

    def _evaluation_due(self) -> bool:
        """Whether a run that goes on from here must first evaluate."""
        by_epoch = self.args.eval_strategy == IntervalStrategy.EPOCH
        return self._evaluation_stopped or (by_epoch and self._epoch_ends_here() and not self._epoch_ended)

    def _epoch_end_follows(self) -> bool:
        """Whether the evaluation or the save at the end of an epoch comes right after this."""
        by_epoch = self.args.eval_strategy == IntervalStrategy.EPOCH or self.args.save_strategy == SaveStrategy.EPOCH
        return by_epoch and self._epoch_ends_here() and not self._epoch_ended

    def _epoch_ends_here(self) -> bool:
        """Whether this is the last step of an epoch, or of a run that ends in the middle of one."""
        return float(self.state.epoch or 0).is_integer() or self.control.should_training_stop

    def note_epoch(self, *, ended: bool) -> None:
        """Called at the borders of epochs."""
        self._epoch_ended = ended
