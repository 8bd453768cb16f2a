"""Experts in NF4 with doubly quantised scales become dense, those that are wanted, in memory that is there already.

bitsandbytes' format and, to the bit, its values: two weights to a byte, the first in the upper half; a scale for every 64
weights, itself a byte that stands for a value of a table, times a scale for every 256 of them, plus an offset for them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aria_finetune.kernels.language import for_triton, kernel, rounded, tl, triton

BLOCK = 64
NESTED_BLOCK = 256
BLOCKS = 64
"""Blocks of 64 weights that a program unpacks."""
WARPS = 4
EXACT = {"enable_fp_fusion": False}
"""A product and a sum in one rounding would give other bits than bitsandbytes."""


@dataclass(frozen=True, slots=True)
class PackedStack:
    """The projection of all experts of a layer.

    Attributes:
        packed: uint8, experts * in * out / 2 bytes, contiguous.
        scale: uint8, one of each block of 64 weights.
        scale_table: fp32 (256,), what a byte of `scale` stands for.
        nested_scale: fp32, one of each 256 scales.
        offset: fp32, one number, added to every scale.
        table: fp32 (16,), what four bits of `packed` stand for.
        shape: (experts, in, out), with in * out a multiple of 64.
        dtype: of the dense weights.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    scale_table: torch.Tensor
    nested_scale: torch.Tensor
    offset: torch.Tensor
    table: torch.Tensor
    shape: tuple[int, int, int]
    dtype: torch.dtype


def unpack_experts(stack: PackedStack, expert_J: torch.Tensor, output_JIO: torch.Tensor) -> None:
    """Write the weights of experts `expert_J` into `output_JIO`.

    Args:
        stack: all experts.
        expert_J: int32 (J,), their numbers; where it is negative, the place is left as it is.
        output_JIO: (J, in, out), contiguous, of the stack's dtype.

    Raises:
        ValueError: the output is not as it should be.
    """
    experts, inner, outer = stack.shape
    if output_JIO.shape != (len(expert_J), inner, outer) or output_JIO.dtype != stack.dtype:
        raise ValueError(f"{len(expert_J)} of {experts} experts ({inner}, {outer}) don't go into {output_JIO.shape}")
    if not for_triton(output_JIO):
        for place, expert in enumerate(expert_J.tolist()):
            if expert >= 0:
                output_JIO[place] = _unpacked(stack, expert)
        return
    blocks = inner * outer // BLOCK
    unpack_kernel[triton.cdiv(blocks, BLOCKS), len(expert_J)](
        stack.packed, stack.scale, stack.scale_table, stack.nested_scale, stack.offset, stack.table, expert_J,
        output_JIO, EXPERT_BLOCKS=blocks, BLOCKS=BLOCKS, num_warps=WARPS, **EXACT,
    )  # fmt: skip


def _unpacked(stack: PackedStack, expert: int) -> torch.Tensor:
    """The weight (in, out) of an expert."""
    _, inner, outer = stack.shape
    blocks = inner * outer // BLOCK
    byte_HB = stack.packed.view(-1)[expert * blocks * BLOCK // 2 :][: blocks * BLOCK // 2].view(blocks, BLOCK // 2)
    block_B = torch.arange(expert * blocks, (expert + 1) * blocks, device=byte_HB.device)
    nested_B = stack.nested_scale[block_B // NESTED_BLOCK]
    scale_B = stack.scale_table[stack.scale.view(-1)[block_B].int()] * nested_B + stack.offset
    values = stack.table[torch.stack([byte_HB >> 4, byte_HB & 15], dim=-1).int()]
    return (values.view(blocks, BLOCK) * scale_B[:, None]).to(stack.dtype).view(inner, outer)


@kernel
def unpack_kernel(
    packed: tl.tensor,
    scales: tl.tensor,
    scale_table: tl.tensor,
    nested_scales: tl.tensor,
    offset: tl.tensor,
    table: tl.tensor,
    experts: tl.tensor,
    output: tl.tensor,
    EXPERT_BLOCKS: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Some blocks of 64 weights of an expert."""
    place = tl.program_id(1).to(tl.int64)
    expert = tl.load(experts + place).to(tl.int64)
    if expert < 0:
        return
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < EXPERT_BLOCKS
    number = expert * EXPERT_BLOCKS + block
    coarse = tl.load(scale_table + tl.load(scales + number, mask=inside, other=0).to(tl.int32))
    scale = coarse * tl.load(nested_scales + number // 256, mask=inside, other=0.0) + tl.load(offset)
    pairs = tl.load(packed + number[:, None] * 32 + tl.arange(0, 32)[None, :], mask=inside[:, None], other=0)
    first = tl.load(table + (pairs >> 4).to(tl.int32)) * scale[:, None]
    second = tl.load(table + (pairs & 15).to(tl.int32)) * scale[:, None]
    element_type = output.dtype.element_ty
    weights = tl.interleave(rounded(first, element_type), rounded(second, element_type))
    places = (place * EXPERT_BLOCKS + block)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(output + places, weights, mask=inside[:, None])
