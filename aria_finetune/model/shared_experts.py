"""The MLP that every token goes through beside its routed experts, where its weights are NF4, have no adapters, and on a CPU.

transformers keeps five tensors of the MLP's width for the backward. Here only the input is kept, and gate and up are computed
again while their gradients are. Nothing is kept when the output is computed, so that under gradient checkpointing it can be
left to the end, which the second forward of a layer does not come to. Knows nothing of routing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.models.aria.modeling_aria import AriaSharedExpertsMLP

from aria_finetune.model.expert_weights import arithmetic
from aria_finetune.model.packed_linear import PackedLinear, times, times_transposed, weight_of

TILE_ROWS = 1024
"""Tokens at a time: with more none takes less time, and every token takes 13 KiB for each of gate and up."""


def start(mlp: AriaSharedExpertsMLP, hidden_states: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Keep the input of the MLP for its backward; of an MLP that this is not made for, all that it keeps.

    Args:
        mlp: frozen, or with adapters.
        hidden_states: (batch, tokens, hidden), any float dtype, which is that of the output.

    Returns:
        What computes the output, (batch, tokens, hidden), to be called once.
    """
    projections = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    packed = all(type(projection) is PackedLinear for projection in projections)
    if not packed or hidden_states.device.type != "cpu" or mlp.config.hidden_act != "silu":
        # Now and not at the end: what it keeps is kept again in the second forward of a checkpointed layer, which then ends here.
        output: torch.Tensor = mlp(hidden_states)
        return lambda: output
    keep: Any = _SharedInputs.apply
    return partial(_finish, keep(hidden_states, mlp), mlp)


def _finish(kept_BTH: torch.Tensor, mlp: AriaSharedExpertsMLP) -> torch.Tensor:
    compute: Any = _SharedOutputs.apply
    output: torch.Tensor = compute(kept_BTH, mlp)
    return output


class _SharedInputs(torch.autograd.Function):
    """Keeps the tokens, and computes their gradient; its output goes to `_SharedOutputs` alone, and so its gradient is of that's."""

    @staticmethod
    def forward(ctx: Any, tokens_BTH: torch.Tensor, mlp: AriaSharedExpertsMLP) -> torch.Tensor:
        ctx.save_for_backward(tokens_BTH)
        ctx.mlp = mlp
        return tokens_BTH.view_as(tokens_BTH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BTH: torch.Tensor) -> tuple[torch.Tensor, None]:
        (tokens_BTH,) = ctx.saved_tensors
        tokens_TH, gradient_TH = tokens_BTH.flatten(0, 1), gradient_BTH.flatten(0, 1)
        found_TH = torch.empty_like(tokens_TH)
        for tile in _tiles(len(tokens_TH)):
            found_TH[tile] = _gradient(ctx.mlp, tokens_TH[tile], gradient_TH[tile])
        return found_TH.view(tokens_BTH.shape), None


class _SharedOutputs(torch.autograd.Function):
    """Computes the MLP, and keeps nothing."""

    @staticmethod
    def forward(_: Any, tokens_BTH: torch.Tensor, mlp: AriaSharedExpertsMLP) -> torch.Tensor:
        tokens_TH = tokens_BTH.flatten(0, 1)
        output_TH = torch.empty_like(tokens_TH)
        for tile in _tiles(len(tokens_TH)):
            output_TH[tile] = _output(mlp, tokens_TH[tile])
        return output_TH.view(tokens_BTH.shape)

    @staticmethod
    def backward(_: Any, gradient_BTH: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient_BTH, None


def _output(mlp: AriaSharedExpertsMLP, tokens_TH: torch.Tensor) -> torch.Tensor:
    rows_TH = tokens_TH.to(arithmetic(tokens_TH.dtype, tokens_TH.device))
    gate_TF = times_transposed(rows_TH, weight_of(mlp.gate_proj))
    hidden_TF = functional.silu(gate_TF, inplace=True).mul_(times_transposed(rows_TH, weight_of(mlp.up_proj)))
    return times_transposed(hidden_TF, weight_of(mlp.down_proj))


def _gradient(mlp: AriaSharedExpertsMLP, tokens_TH: torch.Tensor, gradient_TH: torch.Tensor) -> torch.Tensor:
    gate_gradient_TF, up_gradient_TF = _projected_gradients(mlp, tokens_TH, gradient_TH)
    found_TH = times(gate_gradient_TF, weight_of(mlp.gate_proj))
    return found_TH.add_(times(up_gradient_TF, weight_of(mlp.up_proj)))


def _projected_gradients(
    mlp: AriaSharedExpertsMLP, tokens_TH: torch.Tensor, gradient_TH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate and up, (tokens, width) each."""
    dtype = arithmetic(tokens_TH.dtype, tokens_TH.device)
    hidden_gradient_TF = times(gradient_TH.to(dtype), weight_of(mlp.down_proj))
    rows_TH = tokens_TH.to(dtype)
    gate_TF = times_transposed(rows_TH, weight_of(mlp.gate_proj))
    up_TF = times_transposed(rows_TH, weight_of(mlp.up_proj))
    up_gradient_TF = functional.silu(gate_TF).mul_(hidden_gradient_TF)
    hidden_gradient_TF.mul_(up_TF)
    torch.ops.aten.silu_backward.grad_input(hidden_gradient_TF, gate_TF, grad_input=gate_TF)
    return gate_TF, up_gradient_TF


def _tiles(length: int) -> Iterator[slice]:
    for first in range(0, length, TILE_ROWS):
        yield slice(first, min(first + TILE_ROWS, length))
