"""Aria as TRL's loss calls it, with labels scored by our own function in the place of TRL's fused lm_head.

TRL's takes a dense weight only, scores every position on a CPU, and multiplies by the head once more in the backward. What
comes back has the fields that TRL makes its loss and its metrics of, so that both are counted as with its own. Knows the
trainer's calls and the model, not how labels are scored.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import bitsandbytes as bnb
from transformers import AriaForConditionalGeneration

from aria_finetune.model.head_loss import Head, Scores, score_labels
from aria_finetune.model.nf4 import PackedRows


class ScoredHeadModel:
    """Called in place of the model.

    Args:
        model: what the trainer calls, for everything but scores.
        aria: the Aria inside of it, whose layers carry the adapters; its lm_head is frozen.
        autocast: opens the mixed precision of the run.
    """

    def __init__(
        self, model: Any, aria: AriaForConditionalGeneration, autocast: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._model, self._aria, self._autocast = model, aria, autocast

    def __call__(self, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        """Scores of `labels`, or what the model gives."""
        return self._score(**inputs) if fused_lm_head else self._model(**inputs)

    def _score(self, labels: Any, **inputs: Any) -> Scores:
        with self._autocast():
            hidden_BSH = self._aria.model(**inputs).last_hidden_state
            return score_labels(hidden_BSH, labels, head_rows(self._aria))


def head_rows(aria: AriaForConditionalGeneration) -> Head:
    """The rows of the lm_head, dense or in NF4."""
    weight = aria.lm_head.weight
    return PackedRows(weight.data, weight.quant_state) if isinstance(aria.lm_head, bnb.nn.Linear4bit) else weight.data
