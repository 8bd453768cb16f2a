"""Aria as TRL's loss calls it, where the lm_head is NF4: TRL's own fused head takes a dense weight only.

What comes back has the fields that TRL makes its loss and its metrics of, so that both are counted as for a dense head. Knows
the trainer's calls and the model, not how labels are scored.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import bitsandbytes as bnb
import torch
from transformers import AriaForConditionalGeneration

from aria_finetune.model.head_loss import Scores, score_labels
from aria_finetune.model.nf4 import PackedRows


def has_packed_head(aria: AriaForConditionalGeneration) -> bool:
    """Whether the lm_head is NF4."""
    return isinstance(aria.lm_head, bnb.nn.Linear4bit)


class PackedHeadModel:
    """Called in place of the model.

    Args:
        model: what the trainer calls, for everything but scores.
        aria: the Aria inside of it, whose layers carry the adapters.
        autocast: opens the mixed precision of the run.
    """

    def __init__(
        self, model: Any, aria: AriaForConditionalGeneration, autocast: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._model, self._aria, self._autocast = model, aria, autocast

    def __call__(self, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        """Scores of `labels`, or what the model gives."""
        return self._score(**inputs) if fused_lm_head else self._model(**inputs)

    def _score(self, labels: torch.Tensor, **inputs: Any) -> Scores:
        weight = self._aria.lm_head.weight
        with self._autocast():
            hidden_BSH = self._aria.model(**inputs).last_hidden_state
            return score_labels(hidden_BSH, labels, PackedRows(weight.data, weight.quant_state))
