"""Slots in the order of their experts: against Python's own sort."""

from __future__ import annotations

import pytest
import torch

from aria_finetune.kernels.sorting import sort_by_expert

TABLES = [
    [[3, 0], [0, 5], [3, 5], [1, 0]],
    [[7, 6]],
    [[2, 2, 2]] * 5,  # one expert has all, and more than one slot of a token
    [[0, 7], [7, 0], [0, 7]],
]


@pytest.mark.parametrize("table", TABLES)
def test_slots_are_sorted_by_expert_and_then_by_token(table: list[list[int]], device: str) -> None:
    index = torch.tensor(table, device=device)
    sorting = sort_by_expert(index, 8)
    experts = [expert for row in table for expert in row]
    due = sorted(range(len(experts)), key=experts.__getitem__)
    assert sorting.slots.tolist() == due
    assert [due[row] for row in sorting.rows.tolist()] == list(range(len(due)))
    assert sorting.ends.tolist() == [sum(expert <= number for expert in experts) for number in range(8)]
    assert sorting.top_k == len(table[0])
    assert {tensor.dtype for tensor in (sorting.slots, sorting.rows, sorting.ends)} == {torch.int32}


def test_no_token(device: str) -> None:
    sorting = sort_by_expert(torch.empty(0, 6, dtype=torch.int64, device=device), 64)
    assert len(sorting.slots) == len(sorting.rows) == 0
    assert sorting.ends.tolist() == [0] * 64
