"""Numbers that would ruin an adapter, stopped before the update: losses and gradients that are not finite, spikes.

Knows floats and row numbers, nothing of models.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from aria_finetune.errors import UserError

SHOWN_ROWS = 16
SPIKE_MEMORY = 32
"""How many gradient norms a new one is compared with."""
SPIKE_MINIMUM = 8
"""Norms needed before any can be called a spike."""


class NumberGuard:
    """Watches one run.

    Args:
        name: what to call a row in a message.
        spike_factor: a gradient norm of more than this many times the median of the last 32 is a spike; None for
            no limit.
    """

    def __init__(self, name: Callable[[int], str], spike_factor: float | None = None) -> None:
        self._name = name
        self._spike_factor = spike_factor
        self._rows: list[int] = []
        self._norms: deque[float] = deque(maxlen=SPIKE_MEMORY)

    def begin_step(self) -> None:
        """Forget the rows of the last optimizer step."""
        self._rows = []

    def check_loss(self, loss: float, rows: Sequence[int], place: str) -> None:
        """Take note of a micro-batch.

        Raises:
            UserError: its loss is not finite; `place` says when, such as `at step 3`.
        """
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} {place}, in {self._named(rows)}; no update was made with it",
                fix="look at these rows, or lower train.learning_rate; the checkpoints sealed before are sound",
            )
        self._rows += rows

    def check_gradient(self, norm: float, place: str) -> None:
        """Judge a step's gradient, just before its update.

        Raises:
            UserError: it is not finite.
        """
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient is not finite {place} (its norm is {norm}), whose rows were {self._named(self._rows)}; "
                "no update was made",
                fix="lower train.learning_rate, or look at these rows; the checkpoints before this step are sound",
            )

    def spike(self, norm: float) -> str | None:
        """Why a finite gradient should make no update, or None; a norm that is no spike is remembered."""
        usual = median(self._norms) if len(self._norms) >= SPIKE_MINIMUM else math.inf
        if self._spike_factor is not None and norm > self._spike_factor * usual:
            return (
                f"the gradient's norm, {norm:.4g}, is {norm / usual if usual else math.inf:.1f} times the usual "
                f"{usual:.4g}; rows: {self._named(self._rows)}"
            )
        if norm > 0:
            self._norms.append(norm)
        return None

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge as this one would."""
        return {"norms": list(self._norms)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._norms = deque(state["norms"], maxlen=SPIKE_MEMORY)

    def _named(self, rows: Sequence[int]) -> str:
        names = [self._name(row) for row in dict.fromkeys(rows)]
        more = f" and {len(names) - SHOWN_ROWS} more" if len(names) > SHOWN_ROWS else ""
        return f"row(s) {', '.join(names[:SHOWN_ROWS])}{more}"
