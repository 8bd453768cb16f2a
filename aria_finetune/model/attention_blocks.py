"""Causal attention inside documents on a CPU: a block of queries against the keys up to its own, no (S, S) scores.

torch's `scaled_dot_product_attention` has one kernel for it, which works in tiles of its own in the dtype of its inputs. Here
products are those of a matrix library in fp32, which on processors without matrix instructions for 16 bit are faster: 1.6 times in
the forward and twice in the backward at 4096 tokens. Scores are never rounded to 16 bit. The backward is that of
FlashAttention-2 (arXiv 2307.08691, section 3.1): probabilities are computed again from the log-sum-exp of their row. Knows nothing
of models or of where documents begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.autograd.function import once_differentiable

QUERIES = 128
"""Queries in a block; measured best of 32 to 256 from 256 to 4096 tokens."""
SCORES_BYTES = 1 << 20
"""About as much as the scores of some heads may take together, half the second-level cache of a core. A single head may take more."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some heads of the tokens of one document, as indices of (tokens, heads, size)."""

    tokens: slice
    heads: slice

    def of(self, x_THD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """This part as (heads, tokens, size) in a dtype, contiguous but for what is in it already."""
        return x_THD[self.tokens, self.heads].transpose(0, 1).to(dtype, memory_format=torch.contiguous_format)


class _Attention(torch.autograd.Function):
    """Keeps its inputs, its output and the log-sum-exp (heads, tokens) of each row of scores."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: torch.Tensor,
        key_THD: torch.Tensor,
        value_THD: torch.Tensor,
        borders: Sequence[int],
        scale: float,
    ) -> torch.Tensor:
        exact = _exact(query_THD)
        output_THD = torch.empty(query_THD.shape, dtype=query_THD.dtype)
        normaliser_HT = torch.empty(query_THD.shape[1], query_THD.shape[0], dtype=exact)
        for part in _parts(borders, query_THD.shape[1]):
            query, key, value = (part.of(x_THD, exact) for x_THD in (query_THD, key_THD, value_THD))
            document = _Document(query, key, value, scale)
            with torch.autocast("cpu", enabled=False):
                output, normaliser = document.output()
            output_THD[part.tokens, part.heads] = output.transpose(0, 1)
            normaliser_HT[part.heads, part.tokens] = normaliser
        ctx.save_for_backward(query_THD, key_THD, value_THD, output_THD, normaliser_HT)
        ctx.borders, ctx.scale = borders, scale
        return output_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, output_THD, normaliser_HT = ctx.saved_tensors
        exact = _exact(output_THD)
        gradients = [torch.empty(x_THD.shape, dtype=x_THD.dtype) for x_THD in inputs]
        for part in _parts(ctx.borders, output_THD.shape[1]):
            query, key, value = (part.of(x_THD, exact) for x_THD in inputs)
            document = _Document(query, key, value, ctx.scale)
            output, upstream = part.of(output_THD, exact), part.of(gradient_THD, exact)
            with torch.autocast("cpu", enabled=False):
                found = document.gradients(output, normaliser_HT[part.heads, part.tokens, None], upstream)
            for gradient, values in zip(gradients, found, strict=True):
                gradient[part.tokens, part.heads] = values.transpose(0, 1)
        return *gradients, None, None


def attend(
    query_THD: torch.Tensor, key_THD: torch.Tensor, value_THD: torch.Tensor, borders: Sequence[int], scale: float
) -> torch.Tensor:
    """Attention of each token to itself and to those before it in its document.

    Args:
        query_THD: (tokens, heads, size), a float dtype on a CPU; products and sums are fp32, or fp64 for fp64.
        key_THD: likewise.
        value_THD: likewise.
        borders: where documents begin, rising from 0, and the number of tokens as the last.
        scale: of the scores.

    Returns:
        (tokens, heads, size), contiguous, in the dtype of the queries.
    """
    attention: Any = _Attention.apply
    output: torch.Tensor = attention(query_THD, key_THD, value_THD, borders, scale)
    return output


def _exact(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _parts(borders: Sequence[int], heads: int) -> Iterator[_Part]:
    """All heads of all documents, so many heads of one at a time as have room in the cache."""
    for start, end in pairwise(borders):
        length = end - start
        step = max(SCORES_BYTES // (4 * length * min(length, QUERIES)), 1)
        for head in range(0, heads, step):
            yield _Part(slice(start, end), slice(head, min(head + step, heads)))


def _blocks(length: int) -> Iterator[slice]:
    for start in range(0, length, QUERIES):
        yield slice(start, min(start + QUERIES, length))


class _Room:
    """Memory for the scores of one block after another, which is asked for once: fresh memory costs page faults."""

    def __init__(self, query: torch.Tensor) -> None:
        heads, length, _ = query.shape
        self._memory = query.new_empty(heads * min(length, QUERIES) * length)

    def take(self, heads: int, rows: int, columns: int) -> torch.Tensor:
        """(heads, rows, columns) with any values."""
        return self._memory[: heads * rows * columns].view(heads, rows, columns)


@dataclass(frozen=True, slots=True)
class _Document:
    """Queries, keys and values of some heads of one document, (heads, tokens, size) each."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float

    def output(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(heads, tokens, size), and the log-sum-exp (heads, tokens) of each row of scores."""
        output, normaliser = torch.empty_like(self.query), self.query.new_empty(self.query.shape[:2])
        room = _Room(self.query)
        for block in _blocks(self.query.shape[1]):
            scores = self._scores(block, room)
            largest = scores.amax(-1, keepdim=True)
            shares = scores.sub_(largest).exp_()
            total = shares.sum(-1, keepdim=True)
            torch.bmm(shares, self.value[:, : block.stop], out=output[:, block])
            output[:, block].div_(total)
            normaliser[:, block] = largest.add_(total.log_())[..., 0]
        return output, normaliser

    def gradients(
        self, output: torch.Tensor, normaliser: torch.Tensor, upstream: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of queries, keys and values, of that of the output; `normaliser` is (heads, tokens, 1)."""
        query_gradient, key_gradient, value_gradient = (torch.zeros_like(x) for x in (self.query, self.key, self.value))
        inner = (output * upstream).sum(-1, keepdim=True)  # what a row of shares times their gradients sums to
        room, other_room = _Room(self.query), _Room(self.query)
        for block in _blocks(self.query.shape[1]):
            keys = slice(0, block.stop)
            shares = self._scores(block, room).sub_(normaliser[:, block]).exp_()
            value_gradient[:, keys].baddbmm_(shares.mT, upstream[:, block])
            gradient = other_room.take(*shares.shape)
            torch.bmm(upstream[:, block], self.value[:, keys].mT, out=gradient)
            gradient.sub_(inner[:, block]).mul_(shares)
            query_gradient[:, block].baddbmm_(gradient, self.key[:, keys], beta=0, alpha=self.scale)
            key_gradient[:, keys].baddbmm_(gradient.mT, self.query[:, block], alpha=self.scale)
        return query_gradient, key_gradient, value_gradient

    def _scores(self, block: slice, room: _Room) -> torch.Tensor:
        """(heads, queries of the block, keys up to the block's last); minus infinity for keys behind a query."""
        rows = block.stop - block.start
        scores = room.take(len(self.query), rows, block.stop)
        key = self.key[:, : block.stop].mT
        torch.baddbmm(scores, self.query[:, block], key, beta=0, alpha=self.scale, out=scores)
        scores[:, :, block].add_(self.query.new_full((rows, rows), -torch.inf).triu_(1))
        return scores
