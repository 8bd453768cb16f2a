"""Sums of outer products over the rows of each expert: the gradients of low-rank factors.

One side is a rank and the other a width, so what is made is small, and a program that goes over all rows of an expert for some
columns writes each place once, always summed in the same order.
"""

from __future__ import annotations

import torch

from aria_finetune.kernels.language import EMULATED, for_triton, kernel, tl, triton

RANKS, COLUMNS, DEPTH = 64, 64, 32
"""Of the sums that a program makes, at most, and rows at a time."""
WARPS, STAGES = 4, 3
FEWEST = 16
"""Of either side of a product that tensor cores take."""


def grouped_outer(left_SR: torch.Tensor, right_SI: torch.Tensor, end_E: torch.Tensor) -> torch.Tensor:
    """`left_SR[begin:end].T @ right_SI[begin:end]` for every expert.

    Args:
        left_SR: (rows, rank), contiguous, sorted by expert.
        right_SI: (rows, width), contiguous, of the same dtype.
        end_E: int32 (experts,), the row behind the last of each expert.

    Returns:
        (experts, rank, width) in fp32, zeros for an expert without rows.
    """
    (rows, rank), width = left_SR.shape, right_SI.shape[1]
    if not for_triton(left_SR):
        return _loop(left_SR, right_SI, end_E)
    make = torch.empty if rows else torch.zeros
    output_ERI = make(len(end_E), rank, width, dtype=torch.float32, device=left_SR.device)
    if rows:
        ranks = ranks_together(rank)
        grid = (len(end_E), triton.cdiv(width, COLUMNS), triton.cdiv(rank, ranks))
        outer_kernel[grid](
            left_SR, right_SI, end_E, output_ERI, **constants(rank, width), num_warps=WARPS, num_stages=STAGES
        )
    return output_ERI


def ranks_together(rank: int) -> int:
    """How many places of the rank a program has: all of them in a power of two, if they are not too many."""
    return min(max(FEWEST, 1 << (rank - 1).bit_length()), RANKS)


def constants(rank: int, width: int) -> dict[str, int]:
    """What the kernel is compiled for."""
    return {"RANK": rank, "WIDTH": width, "RANKS": ranks_together(rank), "COLUMNS": COLUMNS, "DEPTH": DEPTH}


def _loop(left_SR: torch.Tensor, right_SI: torch.Tensor, end_E: torch.Tensor) -> torch.Tensor:
    output_ERI = torch.zeros(len(end_E), left_SR.shape[1], right_SI.shape[1], device=left_SR.device)
    begin = 0
    for expert, end in enumerate(end_E.tolist()):
        if end > begin:
            torch.mm(left_SR[begin:end].T.float(), right_SI[begin:end].float(), out=output_ERI[expert])
        begin = end
    return output_ERI


@kernel
def outer_kernel(
    left: tl.tensor,
    right: tl.tensor,
    ends: tl.tensor,
    output: tl.tensor,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Some columns of the sum of one expert."""
    expert = tl.program_id(0)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends + expert)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.program_id(2) * RANKS + tl.arange(0, RANKS)
    total = tl.zeros((RANKS, COLUMNS), dtype=tl.float32)
    for first in range(begin, end, DEPTH):
        row = first + tl.arange(0, DEPTH)
        there = row < end
        rows = row.to(tl.int64)
        a = tl.load(
            left + rows[None, :] * RANK + place[:, None], mask=there[None, :] & (place < RANK)[:, None], other=0.0
        )
        b = tl.load(
            right + rows[:, None] * WIDTH + column[None, :], mask=there[:, None] & (column < WIDTH)[None, :], other=0.0
        )
        if EMULATED:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    places = (expert.to(tl.int64) * RANK + place[:, None]) * WIDTH + column[None, :]
    tl.store(output + places, total, mask=(place < RANK)[:, None] & (column < WIDTH)[None, :])
