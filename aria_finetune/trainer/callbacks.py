"""Callbacks of transformers' Trainer: early stopping that survives a resume, and moments that have no method.

Knows callbacks, not the trainer.
"""

from __future__ import annotations

from typing import Any, Protocol

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class EarlyStopping(EarlyStoppingCallback):  # type: ignore[misc]
    """Stops a run whose evaluation loss got no better `early_stopping_patience` times; remembers how often."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.early_stopping_patience_counter = state["attributes"]["early_stopping_patience_counter"]

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that had come to its end when it was sealed ends here."""
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class HasMoments(Protocol):
    """A trainer that wants to know."""

    def begin(self) -> None:
        """The Trainer has set all its counters; the first step follows."""

    def note_epoch(self, *, ended: bool) -> None:
        """An epoch begins, or has ended."""


class Moments(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer of moments in its own loop that it has no method for."""

    def __init__(self, trainer: HasMoments) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass it on."""
        self._trainer.begin()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass it on."""
        self._trainer.note_epoch(ended=False)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass it on."""
        self._trainer.note_epoch(ended=True)
