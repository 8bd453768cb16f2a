"""Attention in blocks gives the outputs and gradients of softmax(QK^T)V in fp64, document by document."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from aria_finetune.model import attention_blocks
from aria_finetune.model.attention_blocks import QUERIES, attend

HEADS, SIZE = 3, 16
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def borders_of(lengths: list[int]) -> tuple[int, ...]:
    return tuple(accumulate(lengths, initial=0))


def inputs(tokens: int, dtype: torch.dtype = torch.float32, *, deviation: float = 1.0) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(tokens, HEADS, SIZE, generator=generator) * deviation for _ in range(3))
    return query.to(dtype), key.to(dtype), value.to(dtype)


def upstream(tokens: int) -> torch.Tensor:
    return torch.randn(tokens, HEADS, SIZE, generator=torch.Generator().manual_seed(1))


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """One document, by the definition."""
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~causal, -math.inf).softmax(-1), value)


def truth(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: Any, scale: float) -> torch.Tensor:
    """In fp64."""
    parts = zip(*(x.double().split([b - a for a, b in pairwise(borders)]) for x in (query, key, value)), strict=True)
    return torch.cat([reference(*part, scale) for part in parts])


def with_gradients(function: Any, tensors: Inputs, borders: Any, scale: float = 0.3) -> list[torch.Tensor]:
    """Output and the gradients of query, key and value."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    output = function(*leaves, borders, scale)
    output.backward(upstream(len(output)).to(output.dtype))
    assert all(leaf.grad is not None and leaf.grad.dtype == leaf.dtype for leaf in leaves)
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    return float((found.double() - due.double()).norm() / due.double().norm())


CASES = [
    [1],
    [1, 1, 1],
    [7],
    [QUERIES],
    [QUERIES + 1],
    [3 * QUERIES],
    [2 * QUERIES - 1, 1, 5, 300, 1, QUERIES],
    [2] * 60,
]


@pytest.mark.parametrize("lengths", CASES, ids=str)
def test_outputs_and_gradients_in_fp32(lengths: list[int]) -> None:
    batch, borders = inputs(sum(lengths)), borders_of(lengths)
    found, due = with_gradients(attend, batch, borders), with_gradients(truth, batch, borders)
    for name, ours, exact in zip(("output", "query", "key", "value"), found, due, strict=True):
        if exact.norm() < 1e-12:  # one token has nothing to choose from
            assert ours.abs().max() < 1e-6, name
        else:
            assert distance(ours, exact) < 1e-6, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_it_is_no_further_from_the_truth_than_sdpa(dtype: torch.dtype) -> None:
    lengths = [200, 1, 99]
    batch, borders = inputs(300, dtype, deviation=2.0), borders_of(lengths)

    def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, scale: float) -> torch.Tensor:
        # Of four dimensions: with three there is no flash attention on a CPU.
        parts = zip(*(x.transpose(0, 1)[None].split(lengths, dim=2) for x in (query, key, value)), strict=True)
        outputs = [functional.scaled_dot_product_attention(*part, is_causal=True, scale=scale) for part in parts]
        return torch.cat(outputs, dim=2)[0].transpose(0, 1)

    due = with_gradients(truth, batch, borders)
    for ours, other, exact in zip(
        with_gradients(attend, batch, borders), with_gradients(sdpa, batch, borders), due, strict=True
    ):
        assert ours.dtype == dtype
        assert distance(ours, exact) <= 1.05 * distance(other, exact) < 0.01


def test_gradients_in_fp64() -> None:
    batch = tuple(x.requires_grad_() for x in inputs(9, torch.float64))
    assert torch.autograd.gradcheck(lambda *x: attend(*x, (0, 1, 6, 9), 0.3), batch)


def test_large_scores_neither_overflow_nor_vanish() -> None:
    batch, borders = inputs(200, deviation=40.0), (0, 150, 200)
    found, due = with_gradients(attend, batch, borders), with_gradients(truth, batch, borders)
    assert all(torch.isfinite(ours).all() for ours in found)
    assert distance(found[0], due[0]) < 1e-4  # scores of some thousands are themselves good to 1e-4 in fp32


@pytest.mark.parametrize("changed", range(4))
def test_a_document_depends_on_itself_alone(changed: int) -> None:
    lengths = [150, 1, 40, 200]
    borders, batch = borders_of(lengths), inputs(391)
    before = with_gradients(attend, batch, borders)
    place = slice(borders[changed], borders[changed + 1])
    other = tuple(x.clone() for x in batch)
    for x in other:
        x[place] += 1
    after = with_gradients(attend, other, borders)
    untouched = torch.ones(391, dtype=torch.bool)
    untouched[place] = False
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[untouched], new[untouched])
    assert not torch.equal(before[0][place], after[0][place])


def test_a_token_sees_none_behind_it() -> None:
    batch = inputs(2 * QUERIES)
    before = attend(*batch, (0, 2 * QUERIES), 0.3)
    batch[1][QUERIES + 3 :] = 7
    batch[2][QUERIES + 3 :] = 7
    after = attend(*batch, (0, 2 * QUERIES), 0.3)
    assert torch.equal(before[: QUERIES + 3], after[: QUERIES + 3])
    assert not torch.equal(before[QUERIES + 3 :], after[QUERIES + 3 :])


def test_how_heads_are_grouped_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, borders = inputs(300), (0, 260, 300)
    together = with_gradients(attend, batch, borders)
    monkeypatch.setattr(attention_blocks, "SCORES_BYTES", 0)
    alone = with_gradients(attend, batch, borders)
    assert all(apart < 1e-6 for apart in map(distance, alone, together))


def test_views_are_read_as_they_lie() -> None:
    """The projections give (batch, tokens, heads * size), of which attention gets transposed views."""
    batch, borders = inputs(200), (0, 130, 200)
    turned = tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in batch)
    assert not turned[0].is_contiguous()
    found = with_gradients(attend, turned, borders)
    assert all(torch.equal(*pair) for pair in zip(found, with_gradients(attend, batch, borders), strict=True))


def test_recomputation_changes_nothing() -> None:
    def recomputed(*arguments: Any) -> Any:
        return checkpoint(attend, *arguments, use_reentrant=False)

    batch, borders = inputs(200), (0, 130, 200)
    plain, again = with_gradients(attend, batch, borders), with_gradients(recomputed, batch, borders)
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))


def test_autocast_does_not_reach_it() -> None:
    batch, borders = inputs(200), (0, 130, 200)
    plain = with_gradients(attend, batch, borders)
    with torch.autocast("cpu", torch.bfloat16):
        inside = with_gradients(attend, batch, borders)
    assert all(torch.equal(*pair) for pair in zip(plain, inside, strict=True))


class Sizes(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that an operation returned."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        for found in result if isinstance(result, tuple | list) else [result]:
            if isinstance(found, torch.Tensor):
                self.largest = max(self.largest, found.numel())
        return result


def test_scores_of_a_whole_document_are_never_held() -> None:
    tokens = 2048
    batch = inputs(tokens)
    with Sizes() as sizes:
        with_gradients(attend, batch, (0, tokens))
    assert sizes.largest <= max(tokens * QUERIES, tokens * HEADS * SIZE)


def test_saved_tensors_are_few() -> None:
    """Inputs, output, and one number for each token and head."""
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    batch = inputs(200)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(batch[0].requires_grad_(), *batch[1:], (0, 130, 200), 0.3)
    assert sum(tensor.numel() for tensor in saved) == 200 * HEADS * (4 * SIZE + 1)
