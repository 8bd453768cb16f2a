"""The weighted sum over the slots of a token: against fp64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import assert_close, random_tensor

from aria_finetune.kernels.combine import combine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("tokens", "top_k", "hidden"), [(1, 1, 8), (7, 3, 512), (5, 6, 520), (3, 2, 1030)])
def test_sums_are_those_of_fp64(
    device: str,
    tokens: int,
    top_k: int,
    hidden: int,
    weighted: bool,
    dtype: torch.dtype,
) -> None:
    rows = random_tensor(device, tokens * top_k, hidden, dtype=dtype)
    weights = random_tensor(device, tokens * top_k, dtype=dtype, seed=1) if weighted else None
    places = torch.randperm(tokens * top_k, generator=torch.Generator().manual_seed(0)).to(device, torch.int32)
    found = combine(rows, places, top_k, weights)
    due = rows.double()[places.long()].view(tokens, top_k, hidden)
    if weights is not None:
        due = due * weights.double().view(tokens, top_k, 1)
    assert found.dtype == dtype
    assert_close(found, due.sum(1))
    assert torch.equal(found, combine(rows, places, top_k, weights))


def test_sums_are_fp32(device: str) -> None:
    """In bf16 a small number added to a large one is lost, and added five times to it still."""
    rows = torch.tensor([256.0, *[0.5] * 6], device=device, dtype=torch.bfloat16)[:, None].repeat(1, 16)
    places = torch.arange(7, device=device, dtype=torch.int32)
    assert combine(rows, places, 7, None).tolist() == [[260.0] * 16]  # 259, and bf16 has only even numbers there


def test_weights_may_be_of_another_type(device: str) -> None:
    rows, weights = random_tensor(device, 12, 40, dtype=torch.bfloat16), random_tensor(device, 12, seed=1)
    places = torch.arange(12, device=device, dtype=torch.int32)
    found = combine(rows, places, 3, weights)
    assert_close(found, (rows.double() * weights.double()[:, None]).view(4, 3, 40).sum(1))
