"""Losses and gradients made wrong at a named step, as a bad row or a bug in a library would make them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any


def poison(where: str, *, steps: Sequence[int], value: float, micro: int | None = None) -> None:
    """Spoil what this process computes.

    Args:
        where: `loss`, `gradient`, or `evaluation` for the loss of an evaluation.
        steps: optimizer steps, counted from 1; of an evaluation, the steps it comes after.
        value: the loss is multiplied by it. So is the whole gradient where it is finite; else one entry of one
            adapter's gradient becomes it.
        micro: which micro-batch or evaluation batch of the step, counted from 1; None for all.
    """
    from trl import SFTTrainer

    training = where != "evaluation"
    passed: Counter[int] = Counter()

    def due(trainer: Any) -> bool:
        step = trainer.state.global_step + training
        passed[step] += 1
        return step in steps and micro in {None, passed[step]}

    if where == "gradient":
        SFTTrainer.training_step = _with_bad_gradient(SFTTrainer.training_step, due, value)
    else:
        SFTTrainer.compute_loss = _with_bad_loss(SFTTrainer.compute_loss, due, value, training=training)


def _with_bad_loss(original: Any, due: Callable[[Any], bool], value: float, *, training: bool) -> Any:
    def compute_loss(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(trainer, *args, **kwargs)
        if trainer.model.training != training or not due(trainer):
            return result
        return (result[0] * value, *result[1:]) if isinstance(result, tuple) else result * value

    return compute_loss


def _with_bad_gradient(original: Any, due: Callable[[Any], bool], value: float) -> Any:
    def spoil(gradient: Any) -> Any:
        if math.isfinite(value):
            return gradient * value
        spoilt = gradient.clone()
        spoilt.view(-1)[-1] = value
        return spoilt

    def training_step(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if not due(trainer):
            return original(trainer, *args, **kwargs)
        trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        spoilt = trained if math.isfinite(value) else trained[len(trained) // 2 :][:1]
        hooks = [parameter.register_hook(spoil) for parameter in spoilt]
        try:
            return original(trainer, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    return training_step
