"""Rows of tokens for their slots: against indexing."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import random_tensor

from aria_finetune.kernels.gather import gather


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "top_k", "hidden"), [(1, 1, 8), (7, 3, 512), (5, 6, 520), (4, 2, 1030)])
def test_every_slot_gets_the_row_of_its_token(
    device: str, tokens: int, top_k: int, hidden: int, dtype: torch.dtype
) -> None:
    source = random_tensor(device, tokens, hidden, dtype=dtype)
    slots = torch.randperm(tokens * top_k, generator=torch.Generator().manual_seed(0)).to(device, torch.int32)
    assert torch.equal(gather(source, slots, top_k), source[slots.long() // top_k])
    some = slots[: len(slots) // 2]
    assert torch.equal(gather(source, some, top_k), source[some.long() // top_k])
