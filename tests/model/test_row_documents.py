"""Borders of documents: what is refused, and what transformers' mask functions say."""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import (
    causal_mask_function,
    find_packed_sequence_indices,
    packed_sequence_compatibility_function,
)

from aria_finetune.model.documents import borders_of_mask, read_documents


def tensor(*borders: int) -> torch.Tensor:
    return torch.tensor(borders, dtype=torch.int32)


def test_good_borders_are_read() -> None:
    given = tensor(0, 1, 5, 12)
    documents = read_documents(given, 12, max_length=7)
    assert documents.borders == (0, 1, 5, 12)
    assert documents.lengths == (1, 4, 7)
    assert documents.tensor is given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tensor(0, 5, 11), r"rise from 0 to the row's 12 token\(s\), and is \[0, 5, 11\]"),
        (tensor(0, 5, 13), "row's 12 token"),
        (tensor(1, 5, 12), "rise from 0"),
        (tensor(0, 7, 5, 12), "rise from 0"),
        (tensor(0, 5, 5, 12), "rise from 0"),
        (tensor(0), "rise from 0"),
        (tensor(), "rise from 0"),
        (tensor(0, 1, 2, 3, 4, 5, 6, 11), r"\[0, 1, 2, 3, ..., 11\]"),
        (tensor(0, 5, 12).long(), "must be int32 of one dimension, and is int64 of 1 dimensions"),
        (tensor(0, 5, 12)[None], "and is int32 of 2 dimensions"),
    ],
)
def test_bad_borders_are_refused(given: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_documents(given, 12)


def test_a_longest_document_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length_q is 6, and the longest document has 7 tokens"):
        read_documents(tensor(0, 5, 12), 12, max_length=6)
    assert read_documents(tensor(0, 5, 12), 12, max_length=20).lengths == (5, 7)


@pytest.mark.parametrize(
    ("positions", "due"),
    [
        ([[0, 1, 2, 0, 1, 0]], [0, 3, 5, 6]),
        ([[0, 0, 0]], [0, 1, 2, 3]),
        ([[4, 5, 0, 1], [0, 1, 2, 3]], [0, 2, 4, 8]),
        ([[0], [0]], [0, 1, 2]),
    ],
)
def test_documents_are_where_positions_begin_anew(positions: list[list[int]], due: list[int]) -> None:
    position_ids = torch.tensor(positions)
    packed = find_packed_sequence_indices(position_ids)
    assert packed is not None or len(positions[0]) == 1
    packed = torch.zeros_like(position_ids) if packed is None else packed
    function = packed_sequence_compatibility_function(causal_mask_function, position_ids, packed)
    found = borders_of_mask(function, *position_ids.shape, "cpu")
    assert found.dtype == torch.int32
    assert found.tolist() == due
