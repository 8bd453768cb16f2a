"""Sums of outer products over the rows of each expert, against fp64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import random_tensor

from aria_finetune.kernels.outer import grouped_outer, ranks_together

COUNTS = {
    "some idle": [5, 0, 17, 1, 0, 0, 40, 3],
    "one has all": [0, 0, 133, 0],
    "the first has all": [21, 0, 0],
    "whole steps": [32, 64, 0, 32],
    "one row": [0, 1, 0],
}


def check(counts: list[int], rank: int, width: int, dtype: torch.dtype, device: str) -> None:
    left = random_tensor(device, sum(counts), rank, dtype=dtype)
    right = random_tensor(device, sum(counts), width, dtype=dtype, seed=1)
    end = torch.tensor(counts, device=device).cumsum(0).int()
    found = grouped_outer(left, right, end)
    parts = zip(left.double().split(counts), right.double().split(counts), strict=True)
    due = torch.stack([one.T @ other for one, other in parts])
    assert found.shape == (len(counts), rank, width)
    assert found.dtype == torch.float32
    assert (found.double() - due).norm() <= 1e-6 * due.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_every_expert_has_its_own_sum(counts: list[int], dtype: torch.dtype, device: str) -> None:
    check(counts, 8, 64, dtype, device)


@pytest.mark.parametrize(("rank", "width"), [(1, 40), (3, 70), (16, 64), (20, 33), (70, 130)])
def test_sides_that_are_no_multiples_of_a_tile(rank: int, width: int, device: str) -> None:
    check([9, 0, 40], rank, width, torch.float32, device)


def test_without_rows_all_sums_are_zero(device: str) -> None:
    end = torch.zeros(3, dtype=torch.int32, device=device)
    found = grouped_outer(torch.empty(0, 4, device=device), torch.empty(0, 32, device=device), end)
    assert found.shape == (3, 4, 32)
    assert not found.any()


def test_how_much_of_a_rank_goes_together() -> None:
    assert [ranks_together(rank) for rank in (1, 8, 16, 17, 64, 65, 256)] == [16, 16, 16, 32, 64, 64, 64]
