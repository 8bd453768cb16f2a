"""The row of a token, once for each of its slots."""

from __future__ import annotations

import torch

from aria_finetune.kernels.language import for_triton, kernel, tl, triton

BLOCK = 512
WARPS = 2


def gather(source_TH: torch.Tensor, slot_S: torch.Tensor, top_k: int) -> torch.Tensor:
    """Row `slot // top_k` of `source_TH` for every slot.

    Args:
        source_TH: (tokens, hidden), contiguous, any dtype.
        slot_S: int32 (rows,), numbers of slots.
        top_k: slots of a token.

    Returns:
        (rows, hidden) in the dtype of `source_TH`.
    """
    if not for_triton(source_TH):
        return source_TH.index_select(0, slot_S // top_k)
    hidden = source_TH.shape[1]
    output_SH = source_TH.new_empty(len(slot_S), hidden)
    if len(slot_S):
        grid = (len(slot_S), triton.cdiv(hidden, BLOCK))
        gather_kernel[grid](source_TH, slot_S, output_SH, top_k, HIDDEN=hidden, BLOCK=BLOCK, num_warps=WARPS)
    return output_SH


@kernel
def gather_kernel(
    source: tl.tensor, slots: tl.tensor, output: tl.tensor, top_k: tl.tensor, HIDDEN: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """A block of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = (tl.load(slots + row) // top_k).to(tl.int64)
    values = tl.load(source + token * HIDDEN + columns, mask=columns < HIDDEN)
    tl.store(output + row * HIDDEN + columns, values, mask=columns < HIDDEN)
