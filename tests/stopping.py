"""Runs that a signal stops at a chosen moment."""

from __future__ import annotations

import io
import signal
from typing import Any

import pytest
from rich.console import Console

from aria_finetune.interruption import Interrupted, Interruption
from aria_finetune.recipe import Recipe
from aria_finetune.trainer import AriaTrainer
from aria_finetune.training import train


def stop_at(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, micro_batch: int, *, resume: bool = False) -> None:
    """Train until a signal comes during the `micro_batch`-th micro-batch, counted from this start."""
    interruption, left = Interruption(), [micro_batch]
    original = AriaTrainer.training_step

    def step(self: AriaTrainer, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            interruption.asked = signal.SIGTERM
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AriaTrainer, "training_step", step)
        with pytest.raises(Interrupted):
            train(recipe, Console(file=io.StringIO()), resume=resume, interruption=interruption)
