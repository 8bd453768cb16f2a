"""Aria's routed experts one at a time: dequantise an expert, use it, forget it.

transformers dequantises all experts of a layer before it uses any (1.5 GiB in bf16 for the real Aria) and its autograd keeps
the intermediate tensors of all of them. Here only an expert that a token was sent to is dequantised, and only the input, the
output of the first projection and the routing are kept for the backward. The router's gradient is the scalar product of
an expert's hidden state with `gradient @ down_proj.T`, so the second projection is never computed again. Knows nothing
of how tokens were routed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.nf4 import EXPERT_TENSORS, HOST, PackedRows, expert_state

LEAN = "lean"
"""The name under which transformers knows it (`experts_implementation`)."""


class DenseExperts:
    """The weights (experts, in, out) of one projection."""

    def __init__(self, weight_EIO: torch.Tensor) -> None:
        self._weight_EIO = weight_EIO

    def __getitem__(self, expert: int) -> torch.Tensor:
        """The weight (in, out) of an expert."""
        return self._weight_EIO[expert]


class PackedExperts:
    """The same in NF4, dequantised one at a time to the same bits as all at once."""

    def __init__(self, packed: torch.Tensor, state: QuantState) -> None:
        self._rows = PackedRows(packed, state)

    def __getitem__(self, expert: int) -> torch.Tensor:
        """The weight (in, out) of an expert in the dtype it was quantised from."""
        return self._rows[expert : expert + 1][0]


Projection = DenseExperts | PackedExperts


@dataclass(frozen=True, slots=True)
class Share:
    """The slots of one expert: `slots` are places in the flattened (tokens, top_k), `rows` the tokens."""

    expert: int
    slots: torch.Tensor
    rows: torch.Tensor


def shares(index_TK: torch.Tensor, experts: int) -> Iterator[Share]:
    """The slots of each expert that has any, by expert."""
    expert_S, slot_S = torch.sort(index_TK.reshape(-1), stable=True)
    start = 0
    for expert, count in enumerate(torch.bincount(expert_S, minlength=experts).tolist()[:experts]):
        if count:
            slots = slot_S[start : start + count]
            yield Share(expert, slots, slots // index_TK.shape[1])
        start += count


def multiply(rows_NI: torch.Tensor, weight_IO: torch.Tensor) -> torch.Tensor:
    """`rows_NI @ weight_IO`, without a kernel of its own for each of the many N that routing makes.

    On a CPU, oneDNN writes machine code for every shape of a 16-bit product, about half a megabyte each, keeps a thousand
    of them and never gives back half of that memory: the experts of the tiny Aria held 700 MiB after four steps. Rows of
    zeros round N up to one of four counts per power of two.
    """
    count = len(rows_NI)
    if rows_NI.device.type != "cpu" or rows_NI.dtype == torch.float32:
        return rows_NI @ weight_IO
    padded = functional.pad(rows_NI, (0, 0, 0, rounded_up(count) - count))
    return (padded @ weight_IO)[:count]


def rounded_up(count: int) -> int:
    """The next number with at most three significant bits: 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ..."""
    unit = 1 << max((count - 1).bit_length() - 3, 0)
    return -(-count // unit) * unit


class _Routed(torch.autograd.Function):
    """Gradients for tokens and routing weights; the experts are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens_TH: torch.Tensor,
        weights_TK: torch.Tensor,
        index_TK: torch.Tensor,
        module: AriaExperts,
    ) -> torch.Tensor:
        gate_up, down = _projections(module)
        dtype = tokens_TH.dtype
        weights_S = weights_TK.reshape(-1)
        output_TH = torch.zeros(tokens_TH.shape, dtype=torch.float32, device=tokens_TH.device)
        projected: list[torch.Tensor] = []
        for share in shares(index_TK, module.num_experts):
            gate_up_NI = multiply(tokens_TH[share.rows], gate_up[share.expert].to(dtype))
            projected.append(gate_up_NI)
            gate_NI, up_NI = gate_up_NI.chunk(2, dim=-1)
            expert_NH = multiply(functional.silu(gate_NI) * up_NI, down[share.expert].to(dtype))
            output_TH.index_add_(0, share.rows, expert_NH.float() * weights_S[share.slots, None].float())
        ctx.save_for_backward(tokens_TH, weights_TK, index_TK, *projected)
        ctx.module = module  # and not the scales of its weights, which are made again
        return output_TH.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient_TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens_TH, weights_TK, index_TK, *projected = ctx.saved_tensors
        gate_up, down = _projections(ctx.module)
        dtype = tokens_TH.dtype
        weights_S = weights_TK.reshape(-1)
        tokens_gradient_TH = torch.zeros(tokens_TH.shape, dtype=torch.float32, device=tokens_TH.device)
        weights_gradient_S = torch.zeros(weights_S.shape, dtype=torch.float32, device=tokens_TH.device)
        for share, gate_up_NI in zip(shares(index_TK, ctx.module.num_experts), projected, strict=True):
            gate_NI, up_NI = gate_up_NI.float().chunk(2, dim=-1)
            gradient_NI = multiply(gradient_TH[share.rows].to(dtype), down[share.expert].to(dtype).T).float()
            sigmoid_NI = torch.sigmoid(gate_NI)
            silu_NI = gate_NI * sigmoid_NI
            weights_gradient_S[share.slots] = (silu_NI * up_NI * gradient_NI).sum(-1)
            gradient_NI *= weights_S[share.slots, None].float()
            gate_gradient_NI = gradient_NI * up_NI * (sigmoid_NI + silu_NI * (1 - sigmoid_NI))
            projected_gradient_NI = torch.cat([gate_gradient_NI, gradient_NI * silu_NI], dim=-1).to(dtype)
            tokens_gradient_NH = multiply(projected_gradient_NI, gate_up[share.expert].to(dtype).T)
            tokens_gradient_TH.index_add_(0, share.rows, tokens_gradient_NH.float())
        weights_gradient_TK = weights_gradient_S.view(weights_TK.shape).to(weights_TK.dtype)
        return tokens_gradient_TH.to(dtype), weights_gradient_TK, None, None


def lean_experts(
    self: AriaExperts, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Aria's `AriaExperts.forward` for frozen experts, dense or NF4.

    Args:
        self: the module of the experts.
        hidden_states: (tokens, hidden), any float dtype, which is what is computed in; sums over experts are fp32.
        top_k_index: (tokens, top_k), int64.
        top_k_weights: (tokens, top_k).

    Returns:
        (tokens, hidden) in the dtype of `hidden_states`.

    Raises:
        RuntimeError: an expert is to be trained.
    """
    with torch.autocast(device_type=hidden_states.device.type, enabled=False):
        routed: Any = _Routed.apply
        output: torch.Tensor = routed(hidden_states, top_k_weights, top_k_index, self)
    return output


def _projections(experts: AriaExperts) -> tuple[Projection, Projection]:
    host = experts.__dict__.get(HOST)
    if host is not None:
        stacks = host.fetch()
        return PackedExperts(*stacks["gate_up_proj"]), PackedExperts(*stacks["down_proj"])
    gate_up, down = (_projection(experts, name) for name in EXPERT_TENSORS)
    return gate_up, down


def _projection(experts: AriaExperts, name: str) -> Projection:
    packed = expert_state(experts, name)
    if packed is not None:
        return PackedExperts(*packed)
    weight = getattr(experts, name)
    if weight.requires_grad:
        raise RuntimeError(f"{name} is to be trained, and its gradient is not computed here")
    return DenseExperts(weight)


ALL_EXPERTS_FUNCTIONS.register(LEAN, lean_experts)
