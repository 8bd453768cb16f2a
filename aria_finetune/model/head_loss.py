"""Log-probabilities of labels from an lm_head of which some rows are used at a time, be it packed or dense.

For a token with hidden state h and label y, with logits z = W h and p = softmax(z),

    log p_y        = z_y - log sum_v exp z_v
    d log p_y / dh = (1 - p_y) W_y - sum_{v != y} p_v W_v

and both sums go over the vocabulary once, slice by slice, rescaled whenever a larger logit comes (online softmax, arXiv
1805.02867; the rows of W are summed along as arXiv 2205.14135 does with the values of attention). So the head is multiplied
twice and dequantised once, a slice at a time, its gradient to the hidden states is known after the forward, and no logits
outlive a tile. Only tokens with a label come here at all. The head is frozen and has no gradient. Leaving y out of the sum
keeps the gradient of a token that is almost certain exact. Knows nothing of models or of how a loss is made of
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

IGNORED = -100
SLICE_ROWS = 4096
"""Rows of the head at a time: 20 MiB in bf16 for the real Aria."""
TILE_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Tokens at a time: with the rows above, a tile of logits is 16 MiB, and 64 MiB where each operation is a launch."""
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
    mask_BS = torch.zeros(labels_BS.shape, dtype=torch.bool, device=hidden_BSH.device)
    mask_BS[:, :-1] = labels_BS[:, 1:] != IGNORED
    places_T = mask_BS.flatten().nonzero()[:, 0]  # the one time that a GPU is waited for
    hidden_TH = hidden_BSH.flatten(0, 1).index_select(0, places_T)
    labels_T = labels_BS.to(hidden_BSH.device).flatten()[places_T + 1]
    differentiable = torch.is_grad_enabled() and hidden_TH.requires_grad
    with torch.autocast(device, enabled=False):
        scored: Any = _LogProbabilities.apply
        found_T = scored(hidden_TH, labels_T, head, dtype, differentiable)
    # Put into zeros, so that a batch without labels stays in the graph, where its gradient is zero.
    spread = (found.new_zeros(mask_BS.numel()).index_copy(0, places_T, found) for found in found_T)
    log_probs, entropy, is_top1 = (found.view(mask_BS.shape)[:, :-1] for found in spread)
    return Scores(log_probs, entropy, is_top1, mask_BS[:, :-1])


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
        for start in range(0, len(head) if len(labels_T) else 0, SLICE_ROWS):
            sums.add(start, head[start : start + SLICE_ROWS])
        if differentiable:
            ctx.save_for_backward(sums.direction(head))
            ctx.dtype = hidden_TH.dtype
        found = sums.results()
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, gradient_T: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (direction_TH,) = ctx.saved_tensors
        gradient_TH = torch.empty_like(direction_TH, dtype=ctx.dtype)
        for tokens in _slices(gradient_T):
            gradient_TH[tokens] = direction_TH[tokens] * gradient_T[tokens, None]
        return gradient_TH, None, None, None, None


class _Sums:
    """What is summed over the vocabulary for each token; exponentials are relative to its largest logit so far."""

    def __init__(
        self, hidden_TH: torch.Tensor, labels_T: torch.Tensor, dtype: torch.dtype, *, differentiable: bool
    ) -> None:
        self._labels_T, self._dtype = labels_T, dtype
        exact = torch.promote_types(hidden_TH.dtype, torch.float32)
        # Tensor cores sum products of 16 bit in fp32. A CPU gives them back in 16 bit, so that there they are made of fp32.
        self._operand = dtype if hidden_TH.is_cuda and dtype in HALF else exact
        self._hidden_TH = hidden_TH.detach().to(dtype).to(self._operand)
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
        self._spaces: dict[str, torch.Tensor] = {}

    def add(self, start: int, weight_VH: torch.Tensor) -> None:
        """Take in the rows of the head from `start` on, for all tokens."""
        weight_VH = weight_VH.to(self._dtype)
        if weight_VH.dtype != self._operand:
            weight_VH = self._space("weight", weight_VH.shape, self._operand).copy_(weight_VH)
        for tokens in _slices(self._labels_T):
            self._fold(tokens, start, weight_VH)

    def _fold(self, tokens: slice, start: int, weight_VH: torch.Tensor) -> None:
        logits_TV = self._logits(self._hidden_TH[tokens], weight_VH)
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
        # Without the label: the exponential of so small a logit is 0, and so is their product.
        logits_TV.scatter_(1, place_T1, label_T1.masked_fill(inside_T1, torch.finfo(logits_TV.dtype).min))
        shares_TV = self._space("shares", logits_TV.shape, logits_TV.dtype)
        torch.sub(logits_TV, self._largest_T[tokens, None], out=shares_TV).exp_()
        self._others_T[tokens] = self._others_T[tokens] * shrink_T + shares_TV.sum(-1)
        self._weighted_T[tokens] = self._weighted_T[tokens] * shrink_T + logits_TV.mul_(shares_TV).sum(-1)
        if self._rows_TH is not None:
            self._add_rows(self._rows_TH[tokens].mul_(shrink_T[:, None]), shares_TV, weight_VH)

    # TRL found that rounding each slice's share of a gradient to bf16 biases training (trl/kernels/chunked_logprob.py),
    # so neither product is rounded to the dtype of its operands.

    def _logits(self, hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
        exact = self._largest_T.dtype
        if self._operand != exact:
            return torch.mm(hidden_TH, weight_VH.T, out_dtype=exact)
        space_TV = self._space("logits", torch.Size([len(hidden_TH), len(weight_VH)]), exact)
        return torch.mm(hidden_TH, weight_VH.T, out=space_TV)

    def _add_rows(self, rows_TH: torch.Tensor, shares_TV: torch.Tensor, weight_VH: torch.Tensor) -> None:
        if self._operand != rows_TH.dtype:
            torch.addmm(rows_TH, shares_TV.to(self._operand), weight_VH, out_dtype=rows_TH.dtype, out=rows_TH)
        else:
            rows_TH.addmm_(shares_TV, weight_VH)

    def _space(self, name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Room that every tile uses again: fresh memory costs a CPU more than what is computed in it."""
        if name not in self._spaces:  # no later tile is larger than the first
            self._spaces[name] = torch.empty(shape.numel(), dtype=dtype, device=self._labels_T.device)
        return self._spaces[name][: shape.numel()].view(shape)

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
        self._spaces.clear()
        direction_TH.div_(-total_T[:, None])
        for tokens in _slices(total_T):
            certainty_left_T = self._others_T[tokens] / total_T[tokens]
            direction_TH[tokens] += head[self._labels_T[tokens]].to(direction_TH.dtype) * certainty_left_T[:, None]
        return direction_TH

    def _label_share_and_total(self) -> tuple[torch.Tensor, torch.Tensor]:
        label_T = torch.exp(self._label_T - self._largest_T)
        return label_T, self._others_T + label_T


def _slices(values_T: torch.Tensor) -> Iterator[slice]:
    step = TILE_TOKENS.get(values_T.device.type, TILE_TOKENS["cpu"])
    for start in range(0, len(values_T), step):
        yield slice(start, start + step)
