"""The place of Aria's routed experts in autograd's graph, whatever way they are computed in. Knows no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.expert_factors import Adapters, Factors, adapters_of, tensors_of


class Output(Protocol):
    """Computes the experts' output (tokens, hidden), in the dtype of the tokens."""

    def __call__(
        self,
        module: AriaExperts,
        adapters: Adapters | None,
        tokens_TH: torch.Tensor,
        weights_TK: torch.Tensor,
        index_TK: torch.Tensor,
    ) -> torch.Tensor:
        """Of tokens (tokens, hidden), routing weights and expert indices (tokens, top_k)."""
        ...


class Gradients(Protocol):
    """Computes the gradients of tokens and routing weights, and of all factors if there are adapters."""

    def __call__(
        self,
        module: AriaExperts,
        adapters: Adapters | None,
        tokens_TH: torch.Tensor,
        weights_TK: torch.Tensor,
        index_TK: torch.Tensor,
        gradient_TH: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """As `Output`, with the gradient of that output."""
        ...


@dataclass(frozen=True, slots=True)
class Computation:
    """A way to compute experts, forward and backward."""

    output: Output
    gradients: Gradients

    def __call__(
        self,
        module: AriaExperts,
        tokens_TH: torch.Tensor,
        weights_TK: torch.Tensor,
        index_TK: torch.Tensor,
        factors: dict[str, Factors],
    ) -> torch.Tensor:
        """The experts' output, with `factors` of the adapters of the two projections, if there are any; without autocast."""
        work = _Work(self, module, adapters_of(factors))
        with torch.autocast(device_type=tokens_TH.device.type, enabled=False):
            keep: Any = _Inputs.apply
            compute: Any = _Outputs.apply
            kept_TH = keep(tokens_TH, weights_TK, index_TK, work, *tensors_of(work.adapters))
            output: torch.Tensor = compute(kept_TH, weights_TK.detach(), index_TK, work)
        return output


@dataclass(frozen=True, slots=True)
class _Work:
    computation: Computation
    module: AriaExperts
    adapters: Adapters | None


class _Inputs(torch.autograd.Function):
    """Keeps what the gradients are computed from, and computes them.

    Its output are the tokens, which `_Outputs` alone reads; the gradient that comes back is that of the experts' output.
    Where a layer is checkpointed, torch ends its second forward with the last tensor that is kept again: if nothing after
    the experts keeps one, they are not computed a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens_TH: torch.Tensor,
        weights_TK: torch.Tensor,
        index_TK: torch.Tensor,
        work: _Work,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        # Factors are among the saved tensors for torch to see if an update came between forward and backward.
        ctx.save_for_backward(tokens_TH, weights_TK, index_TK, *factors)
        ctx.work = work
        return tokens_TH.view_as(tokens_TH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens_TH, weights_TK, index_TK, *_ = ctx.saved_tensors
        work, given = ctx.work, (tokens_TH, weights_TK, index_TK, gradient_TH)
        tokens, weights, *factors = work.computation.gradients(work.module, work.adapters, *given)
        return tokens, weights, None, None, *factors


class _Outputs(torch.autograd.Function):
    """Computes the experts, and keeps nothing."""

    @staticmethod
    def forward(
        _: Any, tokens_TH: torch.Tensor, weights_TK: torch.Tensor, index_TK: torch.Tensor, work: _Work
    ) -> torch.Tensor:
        return work.computation.output(work.module, work.adapters, tokens_TH, weights_TK, index_TK)

    @staticmethod
    def backward(_: Any, gradient_TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradient_TH, None, None, None
