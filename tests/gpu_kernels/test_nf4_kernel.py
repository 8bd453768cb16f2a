"""Experts out of NF4: bit for bit what bitsandbytes makes of the whole stack."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from aria_finetune.kernels.nf4 import PackedStack, unpack_experts

SHAPES = [(5, 64, 64), (3, 8, 192), (4, 24, 64), (2, 8, 8)]
"""In the second and third, 256 scales cross experts; in the last, a program has more blocks than an expert."""


def packed(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[PackedStack, torch.Tensor]:
    """Random experts in NF4, and what bitsandbytes makes of them."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    data, state = quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    nested = state.state2
    stack = PackedStack(data, state.absmax, nested.code, nested.absmax, state.offset, state.code, shape, dtype)
    return stack, dequantize_4bit(data, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_experts_to_the_bit(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    stack, due = packed(shape, dtype, device)
    found = torch.full(shape, torch.nan, device=device, dtype=dtype)
    unpack_experts(stack, torch.arange(shape[0], device=device, dtype=torch.int32), found)
    assert torch.equal(found, due)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_experts_in_any_order(dtype: torch.dtype, device: str) -> None:
    stack, due = packed((5, 64, 64), dtype, device)
    found = torch.full((3, 64, 64), 7.0, device=device, dtype=dtype)
    unpack_experts(stack, torch.tensor([4, -1, 0], device=device, dtype=torch.int32), found)
    assert torch.equal(found[0], due[4])
    assert (found[1] == 7).all(), "the place of an expert that is not wanted was written to"
    assert torch.equal(found[2], due[0])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 64, 64), torch.float32), ((3, 64, 32), torch.float32), ((3, 64, 64), torch.bfloat16)]
)
def test_an_output_that_does_not_fit_is_refused(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    stack, _ = packed((5, 64, 64), torch.float32, device)
    wanted = torch.arange(3, device=device, dtype=torch.int32)
    with pytest.raises(ValueError, match="3 of 5 experts"):
        unpack_experts(stack, wanted, torch.empty(shape, dtype=dtype, device=device))
