"""The weighted sum of what the experts of a token gave, in fp32 and always in the same order."""

from __future__ import annotations

import torch

from aria_finetune.kernels.language import for_triton, kernel, rounded, tl, triton

BLOCK = 512
WARPS = 2


def combine(rows_SH: torch.Tensor, row_S: torch.Tensor, top_k: int, weight_S: torch.Tensor | None) -> torch.Tensor:
    """For each token the sum over its slots of their row times their weight.

    Args:
        rows_SH: (tokens * top_k, hidden), contiguous, in any order.
        row_S: int32 (tokens * top_k,), the row of each slot.
        top_k: slots of a token.
        weight_S: (tokens * top_k,), contiguous, by slot; left out, every slot counts once.

    Returns:
        (tokens, hidden) in the dtype of `rows_SH`.
    """
    tokens, hidden = len(row_S) // top_k, rows_SH.shape[1]
    if not for_triton(rows_SH):
        return _combined(rows_SH, row_S.view(tokens, top_k), weight_S)
    output_TH = rows_SH.new_empty(tokens, hidden)
    if tokens:
        grid = (tokens, triton.cdiv(hidden, BLOCK))
        combine_kernel[grid](
            rows_SH, row_S, row_S if weight_S is None else weight_S, output_TH,
            TOP_K=top_k, HIDDEN=hidden, WEIGHTED=weight_S is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return output_TH


def _combined(rows_SH: torch.Tensor, row_TK: torch.Tensor, weight_S: torch.Tensor | None) -> torch.Tensor:
    total_TH = torch.zeros(len(row_TK), rows_SH.shape[1], device=rows_SH.device)
    for k, row_T in enumerate(row_TK.unbind(1)):
        values_TH = rows_SH.index_select(0, row_T).float()
        total_TH += values_TH if weight_S is None else values_TH * weight_S.view(row_TK.shape)[:, k, None].float()
    return total_TH.to(rows_SH.dtype)


@kernel
def combine_kernel(
    rows: tl.tensor,
    row_of_slot: tl.tensor,
    weights: tl.tensor,
    output: tl.tensor,
    TOP_K: tl.constexpr,
    HIDDEN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of a token."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        row = tl.load(row_of_slot + token * TOP_K + k).to(tl.int64)
        values = tl.load(rows + row * HIDDEN + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weights + token * TOP_K + k).to(tl.float32)
        total += values
    tl.store(output + token * HIDDEN + columns, rounded(total, output.dtype.element_ty), mask=columns < HIDDEN)
