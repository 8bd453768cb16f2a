"""Log-probabilities of labels from a head that stays packed: some of its rows are dequantised at a time.

For a token with hidden state h and label y, with logits z = W h and p = softmax(z),

    log p_y        = z_y - log sum_v exp z_v
    d log p_y / dh = (1 - p_y) W_y - sum_{v != y} p_v W_v

and both sums go over the vocabulary once, slice by slice, rescaled whenever a larger logit comes (online softmax, arXiv
1805.02867; the rows of W are summed along as arXiv 2205.14135 does with the values of attention). So the head is dequantised
once, a slice at a time, its gradient to the hidden states is known after the forward, and no logits outlive a tile. The head is
frozen and has no gradient. Leaving y out of the sum keeps the gradient of a token that is almost certain exact. Knows nothing
of models or of how a loss is made of log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

IGNORED = -100
SLICE_ROWS = 4096
"""Rows of the head at a time: 20 MiB in bf16 for the real Aria."""
TILE_TOKENS = 1024
"""Tokens at a time: with the rows above, a tile of logits is 16 MiB."""
HALF = (torch.bfloat16, torch.float16)


class Head(Protocol):
    """The weight (vocabulary, hidden) of an lm_head, of which rows are asked for; a tensor is one."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """Rows (n, hidden), by a slice or by a tensor of n indices."""
        ...


@dataclass(frozen=True)
class Scores:
    """What a model says of the labels that follow: (batch, tokens - 1) each, zero where there is no label.

    `log_probs` and `entropy` are of at least fp32, and only the former has a gradient; `is_top1` says whether the label is the
    likeliest token, `label_mask` where a label is.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor
    label_mask: torch.Tensor


def score_labels(hidden_BSH: torch.Tensor, labels_BS: torch.Tensor, head: Head) -> Scores:
    """Score each label by the hidden state of the token before it.

    Args:
        hidden_BSH: (batch, tokens, hidden), any float dtype. Products are of the dtype of autocast or else of this one, with
            sums in fp32, or in fp64 for fp64.
        labels_BS: (batch, tokens), int64, -100 where there is none.
        head: of any float dtype, frozen.
    """
    device = hidden_BSH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_BSH.dtype
    targets_BS = labels_BS[:, 1:].to(hidden_BSH.device)
    mask_BS = targets_BS != IGNORED
    hidden_TH = hidden_BSH[:, :-1][mask_BS]
    differentiable = torch.is_grad_enabled() and hidden_TH.requires_grad
    with torch.autocast(device, enabled=False):
        scored: Any = _LogProbabilities.apply
        found_T = scored(hidden_TH, targets_BS[mask_BS], head, dtype, differentiable)
    # masked_scatter keeps a batch without labels in the graph, where its gradient is zero.
    log_probs, entropy, is_top1 = (found.new_zeros(mask_BS.shape).masked_scatter(mask_BS, found) for found in found_T)
    return Scores(log_probs, entropy, is_top1, mask_BS)


class _LogProbabilities(torch.autograd.Function):
    """Log-probabilities, entropies and whether the label is on top, (tokens,) each; the first is differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        labels_T: torch.Tensor,
        head: Head,
        dtype: torch.dtype,
        differentiable: bool,  # noqa: FBT001 (autograd functions take no keywords)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sums = _Sums(hidden_TH, labels_T, dtype, differentiable=differentiable)
        for start in range(0, len(head), SLICE_ROWS):
            weight_VH = head[start : start + SLICE_ROWS].to(dtype)
            for tokens in _slices(len(labels_T), TILE_TOKENS):
                sums.fold(tokens, start, weight_VH)
        if differentiable:
            ctx.save_for_backward(sums.direction(head))
            ctx.dtype = hidden_TH.dtype
        found = sums.results()
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, gradient_T: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (direction_TH,) = ctx.saved_tensors
        return (direction_TH * gradient_T[:, None]).to(ctx.dtype), None, None, None, None


class _Sums:
    """What is summed over the vocabulary for each token; exponentials are relative to its largest logit so far."""

    def __init__(
        self, hidden_TH: torch.Tensor, labels_T: torch.Tensor, dtype: torch.dtype, *, differentiable: bool
    ) -> None:
        self._hidden_TH, self._labels_T, self._dtype = hidden_TH.detach(), labels_T, dtype
        exact = torch.promote_types(hidden_TH.dtype, torch.float32)
        zeros_T = torch.zeros(len(labels_T), dtype=exact, device=hidden_TH.device)
        self._largest_T = torch.full_like(zeros_T, -torch.inf)
        self._top_T = torch.full_like(labels_T, -1)
        self._label_T = zeros_T.clone()
        """The logit of the label."""
        self._others_T = zeros_T.clone()
        """exp z_v over all v but the label."""
        self._weighted_T = zeros_T
        """z_v exp z_v over the same."""
        self._rows_TH = torch.zeros(hidden_TH.shape, dtype=exact, device=hidden_TH.device) if differentiable else None
        """exp z_v W_v over the same."""

    def fold(self, tokens: slice, start: int, weight_VH: torch.Tensor) -> None:
        """Take in the rows of the head from `start` on, for some tokens."""
        logits_TV = _product(self._hidden_TH[tokens].to(self._dtype), weight_VH.T, self._largest_T.dtype)
        largest_T, top_T = logits_TV.max(dim=-1)  # the first of equals
        before_T = self._largest_T[tokens].clone()
        self._top_T[tokens] = torch.where(largest_T > before_T, top_T + start, self._top_T[tokens])
        self._largest_T[tokens] = torch.maximum(before_T, largest_T)
        shrink_T = torch.exp(before_T - self._largest_T[tokens])
        here_T1 = (self._labels_T[tokens] - start)[:, None]
        inside_T1 = (here_T1 >= 0) & (here_T1 < len(weight_VH))
        place_T1 = here_T1.clamp(0, len(weight_VH) - 1)
        label_T1 = logits_TV.gather(1, place_T1)
        self._label_T[tokens] += (label_T1 * inside_T1)[:, 0]
        shares_TV = torch.exp(logits_TV - self._largest_T[tokens, None])
        shares_TV.scatter_(1, place_T1, shares_TV.gather(1, place_T1) * ~inside_T1)
        self._others_T[tokens] = self._others_T[tokens] * shrink_T + shares_TV.sum(-1)
        self._weighted_T[tokens] = self._weighted_T[tokens] * shrink_T + (shares_TV * logits_TV).sum(-1)
        if self._rows_TH is not None:
            rows_TH = self._rows_TH[tokens].mul_(shrink_T[:, None])
            rows_TH += _product(shares_TV.to(self._dtype), weight_VH, rows_TH.dtype)

    def results(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, entropies, and whether the label is on top."""
        label_T, total_T = self._label_share_and_total()
        normaliser_T = self._largest_T + torch.log(total_T)
        entropy_T = normaliser_T - (self._weighted_T + label_T * self._label_T) / total_T
        return self._label_T - normaliser_T, entropy_T, self._top_T == self._labels_T

    def direction(self, head: Head) -> torch.Tensor:
        """The gradient (tokens, hidden) of the log-probabilities; the sums of rows become it, and are no more."""
        assert self._rows_TH is not None  # noqa: S101 (only what is differentiable is asked for it)
        _, total_T = self._label_share_and_total()
        direction_TH, self._rows_TH = self._rows_TH, None
        direction_TH.div_(-total_T[:, None])
        for tokens in _slices(len(total_T), TILE_TOKENS):
            certainty_left_T = self._others_T[tokens] / total_T[tokens]
            direction_TH[tokens] += head[self._labels_T[tokens]].to(direction_TH.dtype) * certainty_left_T[:, None]
        return direction_TH

    def _label_share_and_total(self) -> tuple[torch.Tensor, torch.Tensor]:
        label_T = torch.exp(self._label_T - self._largest_T)
        return label_T, self._others_T + label_T


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, start + step)


def _product(left: torch.Tensor, right: torch.Tensor, exact: torch.dtype) -> torch.Tensor:
    """`left @ right` that is not rounded to the dtype of its operands.

    TRL found that rounding each slice's share of a gradient to bf16 biases training (trl/kernels/chunked_logprob.py).
    """
    if left.is_cuda and left.dtype in HALF:
        return torch.mm(left, right, out_dtype=exact)
    return left.to(exact) @ right.to(exact)
