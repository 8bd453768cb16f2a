"""A frozen linear layer in NF4 whose products on a CPU are those of the fastest arithmetic there, with next to no memory.

bitsandbytes dequantises the whole weight to bf16 and multiplies in bf16, which without matrix instructions is half as fast as
fp32 (`arithmetic`). Here few rows are multiplied by pieces of the weight that stay in the cache, and many by a weight that is
dequantised to what is multiplied in. Knows nothing of adapters, which wrap it as they wrap `Linear4bit`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from aria_finetune.model.expert_weights import PackedWeight, Weight, arithmetic, multiply, multiply_transposed
from aria_finetune.model.nf4 import BLOCK, read_scales

FEW_ROWS = 256
"""Up to here pieces that stay in the cache are faster, and from here on fewer and larger products; measured."""
LARGEST_PIECE_BYTES = 64 << 20
"""Of a dequantised weight: more than any of Aria's but the lm_head's."""
TILE_ROWS = 1024
"""Rows that are converted to what is multiplied in at a time."""


class PackedLinear(bnb.nn.Linear4bit):  # type: ignore[misc]
    """`Linear4bit` with products of our own on a CPU; elsewhere, and where a row is no whole number of blocks, the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out) in the dtype of `x`, as products of `compute_dtype`."""
        if x.device.type != "cpu" or self.in_features % BLOCK:
            plain: torch.Tensor = super().forward(x)
            return plain
        product: Any = _Product.apply
        rows = x.reshape(-1, x.shape[-1]).to(self.compute_dtype or x.dtype)
        output: torch.Tensor = product(rows, self)
        return output.view(*x.shape[:-1], output.shape[-1]).to(x.dtype)


def install_packed_linears(model: nn.Module) -> None:
    """Make every `Linear4bit` of a model a `PackedLinear`, with the weight that it has or is still to get."""
    for path, module in list(model.named_modules()):
        if type(module) is bnb.nn.Linear4bit and module.bias is None:
            packed = PackedLinear(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=module.compute_dtype,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            packed.support_avx512bf16_for_cpu = module.support_avx512bf16_for_cpu
            packed.weight = module.weight
            model.set_submodule(path, packed.train(module.training).requires_grad_(requires_grad=False))


class _Product(torch.autograd.Function):
    """Keeps nothing, for the gradient of a frozen product needs nothing but its weight."""

    @staticmethod
    def forward(ctx: Any, rows_NI: torch.Tensor, linear: PackedLinear) -> torch.Tensor:
        ctx.linear = linear
        return times_transposed(rows_NI, weight_of(linear))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NO: torch.Tensor) -> tuple[torch.Tensor, None]:
        return times(gradient_NO, weight_of(ctx.linear)), None


def weight_of(linear: PackedLinear) -> PackedWeight:
    """The weight (out, in) of a linear layer."""
    state = linear.weight.quant_state
    scales = read_scales(state, 0, state.absmax.numel())
    return PackedWeight(linear.weight.data, scales, state.code, torch.Size(state.shape))


def times_transposed(rows_NI: torch.Tensor, weight: Weight) -> torch.Tensor:
    """`rows_NI` times the transposed weight (out, in): (N, out) in the dtype of the rows."""
    dtype, outer = arithmetic(rows_NI.dtype, rows_NI.device), weight.shape[0]
    with torch.autocast(rows_NI.device.type, enabled=False):
        if len(rows_NI) <= FEW_ROWS:
            return multiply_transposed(rows_NI.to(dtype), weight).to(rows_NI.dtype)
        output_NO = rows_NI.new_empty(len(rows_NI), outer)
        step = _piece_rows(weight, dtype)
        for piece in _slices(outer, step):
            weight_IP = weight.read(piece.start, piece.stop, dtype).T
            for tile in _slices(len(rows_NI), TILE_ROWS):
                _multiply(rows_NI[tile], weight_IP, output_NO[tile, piece])
    return output_NO


def times(rows_NO: torch.Tensor, weight: Weight) -> torch.Tensor:
    """`rows_NO` times the weight (out, in): (N, in) in the dtype of the rows."""
    dtype, (outer, inner) = arithmetic(rows_NO.dtype, rows_NO.device), weight.shape
    with torch.autocast(rows_NO.device.type, enabled=False):
        if len(rows_NO) <= FEW_ROWS or _piece_rows(weight, dtype) < outer:
            return multiply(rows_NO.to(dtype), weight).to(rows_NO.dtype)
        output_NI = rows_NO.new_empty(len(rows_NO), inner)
        weight_OI = weight.read(0, outer, dtype)
        for tile in _slices(len(rows_NO), TILE_ROWS):
            _multiply(rows_NO[tile], weight_OI, output_NI[tile])
    return output_NI


def _multiply(rows: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> None:
    if rows.dtype == weight.dtype:
        torch.mm(rows, weight, out=output)
    else:
        output.copy_(rows.to(weight.dtype) @ weight)


def _piece_rows(weight: Weight, dtype: torch.dtype) -> int:
    return max(LARGEST_PIECE_BYTES // (weight.shape[1] * dtype.itemsize), 1)


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
