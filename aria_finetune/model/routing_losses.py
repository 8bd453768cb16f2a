"""Losses that keep a router healthy: the balance of groups of experts, and the size of its logits. Tensors only.

The balance loss is that of the Switch Transformer (arXiv 2101.03961, section 2.2) over groups of experts in place of experts,
as Aria was trained (arXiv 2410.05993); the z-loss is that of ST-MoE (arXiv 2202.08906, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional


@dataclass(frozen=True)
class LossWeights:
    """Coefficients of the losses of each layer, which are summed over layers; `group` is how many experts make up a group.

    A group of 1 gives the loss of every expert. Groups are neighbours: with 8 the first is of experts 0 to 7.
    """

    balance: float = 0.0
    z: float = 0.0
    group: int = 8

    def __bool__(self) -> bool:
        return self.balance > 0 or self.z > 0


def balance_loss(
    logits_TE: torch.Tensor, load_E: torch.Tensor, real_T: torch.Tensor | None, group: int
) -> torch.Tensor:
    """How uneven groups of experts are used: 1 where all are used alike, the number of groups where one takes all.

    With G groups, f_g the share of the tokens' choices that fell on group g and P_g the mean probability of group g under
    the softmax over all experts, it is G times the sum of f_g P_g. Its gradient comes from P; f is counted.

    Args:
        logits_TE: (tokens, experts), float.
        load_E: (experts,), how often each was chosen by a real token, any dtype.
        real_T: (tokens,), 1 for a real token and 0 for padding; None where all are real.
        group: experts in a group, which divides their number.

    Returns:
        A scalar in the dtype of the logits.

    Raises:
        ValueError: groups of such a size don't make up the experts.
    """
    experts = logits_TE.shape[-1]
    if experts % group:
        raise ValueError(f"{experts} experts can't be split into groups of {group}")
    share_G = load_E.to(logits_TE.dtype).view(-1, group).sum(-1)
    # The probabilities add up to 1. Where f is nearly even, what is left of the sum without that constant keeps its precision.
    uneven_G = share_G / share_G.sum() * len(share_G) - 1
    mean_E = _mean(functional.softmax(logits_TE, dim=-1), real_T)
    return 1 + (uneven_G * mean_E.view(-1, group).sum(-1)).sum()


def z_loss(logits_TE: torch.Tensor, real_T: torch.Tensor | None) -> torch.Tensor:
    """The mean over real tokens of the squared logarithm of the sum of the exponentials of their logits, as a scalar."""
    return _mean(torch.logsumexp(logits_TE, dim=-1).square(), real_T)


def _mean(values: torch.Tensor, real_T: torch.Tensor | None) -> torch.Tensor:
    """Over the first dimension, that of tokens."""
    if real_T is None:
        return values.mean(0)
    weights_T = real_T.to(values.dtype)
    total: torch.Tensor = torch.tensordot(weights_T, values, dims=1)
    return total / weights_T.sum()


def with_loss(carrier: torch.Tensor, loss: torch.Tensor, scale: float) -> torch.Tensor:
    """`carrier` as it is; whatever comes back for it, `scale` comes back for `loss`.

    So a loss inside a checkpointed layer takes part in the backward without leaving the layer, and once only: the second forward
    takes the place of the first in the graph.
    """
    apply: Any = _WithLoss.apply
    carried: torch.Tensor = apply(carrier, loss, scale)
    return carried


class _WithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: torch.Tensor, loss: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale, ctx.like = scale, (loss.dtype, loss.device)
        return carrier.view_as(carrier)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        dtype, device = ctx.like
        return gradient, torch.full((), ctx.scale, dtype=dtype, device=device), None
