"""Aria's routed experts one at a time: dequantise a piece of an expert, multiply by it, forget it.

transformers dequantises all experts of a layer before it uses any (1.5 GiB in bf16 for the real Aria) and its autograd keeps
the intermediate tensors of all of them. Here only an expert that a token was sent to is dequantised, and only tokens and
routing are kept for the backward, which computes the first projection again while it has the tokens of an expert in its
hands. The router's gradient is the scalar product of an expert's hidden state with `gradient @ down_proj.T`, so the second
projection is never computed again. Adapters of experts take part as pairs of low rank. Knows nothing of how tokens were routed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.expert_factors import AdaptedWeight, Adapters, Factors, tensors_of
from aria_finetune.model.expert_graph import Computation
from aria_finetune.model.expert_weights import DenseExperts, Experts, PackedExperts, arithmetic
from aria_finetune.model.nf4 import EXPERT_TENSORS, HOST, expert_state

LEAN = "lean"
"""The name under which transformers knows it (`experts_implementation`)."""
MOST_ROWS = 2048
"""Of an expert at a time: with more none takes less time, and an expert that all tokens go to would take memory for all."""


@dataclass(frozen=True, slots=True)
class Share:
    """The slots of one expert: `slots` are places in the flattened (tokens, top_k), `rows` the tokens."""

    expert: int
    slots: torch.Tensor
    rows: torch.Tensor


def shares(index_TK: torch.Tensor, experts: int) -> Iterator[Share]:
    """The slots of each expert that has any, by expert; of those with many, `MOST_ROWS` at a time."""
    expert_S, slot_S = torch.sort(index_TK.reshape(-1), stable=True)
    start = 0
    for expert, count in enumerate(torch.bincount(expert_S, minlength=experts).tolist()[:experts]):
        for first in range(start, start + count, MOST_ROWS):
            slots = slot_S[first : min(first + MOST_ROWS, start + count)]
            yield Share(expert, slots, slots // index_TK.shape[1])
        start += count


def _output(
    module: AriaExperts,
    adapters: Adapters | None,
    tokens_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    index_TK: torch.Tensor,
) -> torch.Tensor:
    gate_up, down = _projections(module, adapters, index_TK)
    dtype = arithmetic(tokens_TH.dtype, tokens_TH.device)
    weights_S = weights_TK.reshape(-1)
    output_TH = torch.zeros(tokens_TH.shape, dtype=torch.float32, device=tokens_TH.device)
    for share in shares(index_TK, module.num_experts):
        gate_up_NI = gate_up.of(share.expert, dtype).times(tokens_TH[share.rows].to(dtype))
        expert_NH = down.of(share.expert, dtype).times(_swiglu(gate_up_NI)).float()
        output_TH.index_add_(0, share.rows, expert_NH.mul_(weights_S[share.slots, None]))
    return output_TH.to(tokens_TH.dtype)


def _gradients(
    module: AriaExperts,
    adapters: Adapters | None,
    tokens_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    index_TK: torch.Tensor,
    gradient_TH: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Of tokens and routing weights, and of all factors if there are adapters."""
    gate_up, down = _projections(module, adapters, index_TK)
    found = None if adapters is None else (adapters[0].zeros(), adapters[1].zeros())
    dtype = arithmetic(tokens_TH.dtype, tokens_TH.device)
    weights_S = weights_TK.reshape(-1)
    tokens_gradient_TH = torch.zeros(tokens_TH.shape, dtype=torch.float32, device=tokens_TH.device)
    weights_gradient_S = torch.zeros(weights_S.shape, dtype=torch.float32, device=tokens_TH.device)
    for share in shares(index_TK, module.num_experts):
        gate_up_expert, down_expert = gate_up.of(share.expert, dtype), down.of(share.expert, dtype)
        weight_N = weights_S[share.slots]
        gradient_NH = gradient_TH[share.rows].to(dtype)
        gradient_NI = down_expert.times_transposed(gradient_NH).float()
        rows_NH = tokens_TH[share.rows].to(dtype)
        gate_up_NI = gate_up_expert.times(rows_NH).float()
        if found and down_expert.pair:
            hidden_NI = _swiglu(gate_up_NI).to(dtype)
            down_expert.pair.add_gradients(found[1], share.expert, hidden_NI, gradient_NH, weight_N)
            del hidden_NI
        del gradient_NH
        weights_gradient_S[share.slots] = _swiglu_backward(gate_up_NI, gradient_NI)
        change_NI = gate_up_NI.to(dtype)
        if found and gate_up_expert.pair:
            gate_up_expert.pair.add_gradients(found[0], share.expert, rows_NH, change_NI, weight_N)
        del rows_NH
        expert_gradient_NH = gate_up_expert.times_transposed(change_NI).float()
        tokens_gradient_TH.index_add_(0, share.rows, expert_gradient_NH.mul_(weight_N[:, None]))
    weights_gradient_TK = weights_gradient_S.view(weights_TK.shape).to(weights_TK.dtype)
    return tokens_gradient_TH.to(tokens_TH.dtype), weights_gradient_TK, *tensors_of(found)


def _swiglu(gate_up_NI: torch.Tensor) -> torch.Tensor:
    gate_NI, up_NI = gate_up_NI.chunk(2, dim=-1)
    return functional.silu(gate_NI).mul_(up_NI)


def _swiglu_backward(gate_up_NI: torch.Tensor, gradient_NI: torch.Tensor) -> torch.Tensor:
    """Turn `gate_up_NI` into its own gradient, in place, from `gradient_NI`, which is that of silu(gate) * up.

    Returns:
        (N,): the product of silu(gate) * up with its gradient.
    """
    gate_NI, up_NI = gate_up_NI.chunk(2, dim=-1)
    silu_NI = functional.silu(gate_NI)
    silu_gradient_NI = gradient_NI * up_NI
    torch.mul(gradient_NI, silu_NI, out=up_NI)
    torch.ops.aten.silu_backward.grad_input(silu_gradient_NI, gate_NI, grad_input=gate_NI)
    return silu_NI.mul_(silu_gradient_NI).sum(-1)


def lean_experts(
    self: AriaExperts,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    **factors: Factors,
) -> torch.Tensor:
    """Aria's `AriaExperts.forward` for frozen experts, dense or NF4.

    Args:
        self: the module of the experts.
        hidden_states: (tokens, hidden), bf16, fp16 or fp32; `arithmetic` says what is computed in, and sums over experts
            are fp32.
        top_k_index: (tokens, top_k), int64.
        top_k_weights: (tokens, top_k).
        factors: of the adapters of `gate_up_proj` and `down_proj`, if there are any.

    Returns:
        (tokens, hidden) in the dtype of `hidden_states`.

    Raises:
        RuntimeError: an expert is to be trained.
    """
    return _COMPUTATION(self, hidden_states, top_k_weights, top_k_index, factors)


@dataclass(frozen=True, slots=True)
class Projection:
    """The weights (experts, in, out) of one projection, and their adapters if they have any."""

    experts: Experts
    factors: Factors | None

    def of(self, expert: int, dtype: torch.dtype) -> AdaptedWeight:
        """That of an expert, to be multiplied by in a dtype."""
        pair = None if self.factors is None else self.factors.of(expert, dtype)
        return AdaptedWeight(self.experts[expert], pair)


def _projections(
    experts: AriaExperts, adapters: Adapters | None, index_TK: torch.Tensor
) -> tuple[Projection, Projection]:
    gate_up, down = _stacks(experts, index_TK)
    return (
        Projection(gate_up, None if adapters is None else adapters[0]),
        Projection(down, None if adapters is None else adapters[1]),
    )


def _stacks(experts: AriaExperts, index_TK: torch.Tensor) -> tuple[Experts, Experts]:
    host = experts.__dict__.get(HOST)
    if host is not None:
        stacks = host.fetch(index_TK)
        return PackedExperts(*stacks["gate_up_proj"]), PackedExperts(*stacks["down_proj"])
    gate_up, down = (_projection(experts, name) for name in EXPERT_TENSORS)
    return gate_up, down


def _projection(experts: AriaExperts, name: str) -> Experts:
    packed = expert_state(experts, name)
    if packed is not None:
        return PackedExperts(*packed)
    weight = getattr(experts, name)
    if weight.requires_grad:
        raise RuntimeError(f"{name} is to be trained, and its gradient is not computed here")
    return DenseExperts(weight)


_COMPUTATION = Computation(_output, _gradients)
ALL_EXPERTS_FUNCTIONS.register(LEAN, lean_experts)
