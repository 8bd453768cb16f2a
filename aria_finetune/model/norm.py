"""The decoder's norms on a CPU: a few rows at a time, which stay in the cache, and only the input is kept.

transformers' own keeps two tensors in fp32 for the backward, four times the input in bf16, and goes through memory a dozen times.
The output is the same to the bit. Knows nothing of what is normalised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.aria.modeling_aria import AriaTextRMSNorm

TILE_ROWS = 128
"""Of 10 KiB in fp32: some of them fit into a second-level cache of 2 MiB."""


class LeanRMSNorm(AriaTextRMSNorm):  # type: ignore[misc]
    """Aria's root mean square norm; with a weight that is trained, and elsewhere than on a CPU, transformers' own."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) in and out, any float dtype; squares and their sums are fp32."""
        if hidden_states.device.type != "cpu" or self.weight.requires_grad or self.weight.dtype != hidden_states.dtype:
            plain: torch.Tensor = super().forward(hidden_states)
            return plain
        normalised: Any = _Normalised.apply
        output: torch.Tensor = normalised(hidden_states, self.weight, self.variance_epsilon)
        return output


def install_lean_norms(model: nn.Module) -> None:
    """Make every norm of a decoder a `LeanRMSNorm`, with the weight that it has or is still to get."""
    for path, module in list(model.named_modules()):
        if type(module) is AriaTextRMSNorm:
            with torch.device("meta"):
                lean = LeanRMSNorm(module.weight.shape[0], eps=module.variance_epsilon)
            lean.weight = module.weight
            model.set_submodule(path, lean.train(module.training))


class _Normalised(torch.autograd.Function):
    """Keeps its input; a row's scale is computed again."""

    @staticmethod
    def forward(ctx: Any, input_BTH: torch.Tensor, weight_H: torch.Tensor, epsilon: float) -> torch.Tensor:
        rows_TH = input_BTH.reshape(-1, input_BTH.shape[-1])
        output_TH = torch.empty_like(rows_TH)
        for tile in _tiles(len(rows_TH)):
            exact_TH = rows_TH[tile].float()
            scaled_TH = exact_TH * _scale(exact_TH, epsilon)
            torch.mul(weight_H, scaled_TH.to(rows_TH.dtype), out=output_TH[tile])
        ctx.save_for_backward(input_BTH, weight_H)
        ctx.epsilon = epsilon
        return output_TH.view(input_BTH.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BTH: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        input_BTH, weight_H = ctx.saved_tensors
        rows_TH, gradient_TH = (x.reshape(-1, x.shape[-1]) for x in (input_BTH, gradient_BTH))
        found_TH, exact_H = torch.empty_like(rows_TH), weight_H.float()
        for tile in _tiles(len(rows_TH)):
            exact_TH = rows_TH[tile].float()
            scale_T1 = _scale(exact_TH, ctx.epsilon)
            scaled_TH, upstream_TH = exact_TH * scale_T1, gradient_TH[tile] * exact_H
            along_T1 = (scaled_TH * upstream_TH).mean(-1, keepdim=True)
            found_TH[tile] = upstream_TH.sub_(scaled_TH.mul_(along_T1)).mul_(scale_T1)
        return found_TH.view(input_BTH.shape), None, None


def _scale(exact_TH: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.rsqrt(exact_TH.pow(2).mean(-1, keepdim=True) + epsilon)


def _tiles(length: int) -> Iterator[slice]:
    for start in range(0, length, TILE_ROWS):
        yield slice(start, min(start + TILE_ROWS, length))
