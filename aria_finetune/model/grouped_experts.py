"""Aria's routed experts, all of a layer in a few kernels, without waiting for the GPU: what a run on a GPU takes.

Tokens are sorted by expert. Experts in NF4 become dense in a workspace that all layers share, first for one projection and then
for the other, and only those that a token was sent to. For the backward nothing is kept but the output of the first projection
and the routing, for experts are frozen; the gradient of the routing weights is <h, gradient @ down_proj.T>, so that the second
projection is never computed again. Where memory is short, some experts go at a time, and the host waits once a layer to learn
which. Knows nothing of how tokens were routed. On a CPU the kernels' ways in torch run, and `lean` is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.kernels.combine import combine
from aria_finetune.kernels.gather import gather
from aria_finetune.kernels.matmul import grouped_matmul
from aria_finetune.kernels.nf4 import PackedStack, unpack_experts
from aria_finetune.kernels.sorting import Sorting, sort_by_expert
from aria_finetune.kernels.swiglu import swiglu, swiglu_backward_
from aria_finetune.model.nf4 import EXPERT_TENSORS, HOST, expert_state
from aria_finetune.model.workspace import workspace_of

GROUPED = "grouped"
"""The name under which transformers knows it (`experts_implementation`)."""
_AT_A_TIME = "experts_at_a_time"
"""The attribute of an experts module that computes some experts at a time."""


def limit_experts(model: nn.Module, at_a_time: int) -> None:
    """Let the layers of a model make so many experts dense at a time.

    Raises:
        ValueError: less than one.
    """
    if at_a_time < 1:
        raise ValueError(f"{at_a_time} experts at a time")
    for module in model.modules():
        if isinstance(module, AriaExperts):
            setattr(module, _AT_A_TIME, at_a_time)


@dataclass(frozen=True, slots=True)
class Group:
    """Experts that are computed together.

    Attributes:
        rows: where their rows are among all that are sorted by expert.
        numbers: int32 (J,), which experts they are, negative where one has no row.
        ends: int32 (J,), the row behind the last of each, counted from the first of the group.
    """

    rows: slice
    numbers: torch.Tensor
    ends: torch.Tensor


def groups(sorting: Sorting, at_a_time: int | None) -> Iterator[Group]:
    """All experts, without waiting for the device; or those that have rows, `at_a_time` of them in a group."""
    ends = sorting.ends
    if at_a_time is None:
        numbers = torch.arange(len(ends), device=ends.device, dtype=torch.int32)
        idle = torch.diff(ends, prepend=ends.new_zeros(1)) == 0
        yield Group(slice(0, len(sorting.slots)), numbers.masked_fill(idle, -1), ends)
        return
    known = ends.tolist()
    begins = [0, *known]
    busy = [expert for expert, end in enumerate(known) if end > begins[expert]]
    for place in range(0, len(busy), at_a_time):
        chosen = busy[place : place + at_a_time]
        rows = slice(begins[chosen[0]], known[chosen[-1]])
        numbers = torch.tensor(chosen, device=ends.device, dtype=torch.int32)
        yield Group(rows, numbers, ends[numbers] - rows.start)


class DenseStack:
    """The weights (experts, in, out) of one projection, taken in a dtype."""

    def __init__(self, weight_EIO: torch.Tensor, module: nn.Module, dtype: torch.dtype) -> None:
        self._weight_EIO, self._module, self._dtype = weight_EIO, module, dtype

    def take(self, group: Group) -> torch.Tensor:
        """The weights (J, in, out) of a group: the layer's own where they can be."""
        weight_EIO = self._weight_EIO
        if len(group.numbers) == len(weight_EIO):
            return weight_EIO.to(self._dtype)
        workspace = workspace_of(self._module, weight_EIO.device, weight_EIO.dtype)
        taken = workspace.take(len(group.numbers), *weight_EIO.shape[1:])
        return torch.index_select(weight_EIO, 0, group.numbers, out=taken).to(self._dtype)


class NF4Stack:
    """The same in NF4, made dense in the workspace."""

    def __init__(self, packed: torch.Tensor, state: QuantState, module: nn.Module, dtype: torch.dtype) -> None:
        self._workspace, self._dtype = workspace_of(module, packed.device, state.dtype), dtype
        self._stack = PackedStack(
            packed=packed,
            scale=state.absmax,
            scale_table=state.state2.code,
            nested_scale=state.state2.absmax,
            offset=state.offset,
            table=state.code,
            shape=tuple(state.shape),
            dtype=state.dtype,
        )

    def take(self, group: Group) -> torch.Tensor:
        """The weights (J, in, out) of a group, until anything else is taken; those of idle experts are anything."""
        taken = self._workspace.take(len(group.numbers), *self._stack.shape[1:])
        unpack_experts(self._stack, group.numbers, taken)
        return taken.to(self._dtype)


Stack = DenseStack | NF4Stack


class _Grouped(torch.autograd.Function):
    """Gradients for tokens and routing weights; the experts are frozen.

    The gradient of gate and up takes the place of what was kept of them, so there is one backward: a second one raises.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens_TH: torch.Tensor, weights_TK: torch.Tensor, index_TK: torch.Tensor, module: AriaExperts
    ) -> torch.Tensor:
        gate_up, down = _stacks(module, tokens_TH.dtype)
        tokens_TH, weight_S = tokens_TH.contiguous(), weights_TK.reshape(-1)
        sorting = sort_by_expert(index_TK, module.num_experts)
        at_a_time = module.__dict__.get(_AT_A_TIME)
        gate_up_SN = _Gathering(at_a_time, tokens_TH, weight_S.numel(), 2 * module.intermediate_dim)
        output_SH = _Gathering(at_a_time, tokens_TH, weight_S.numel(), module.hidden_dim)
        for group in groups(sorting, at_a_time):
            tokens_SH = gather(tokens_TH, sorting.slots[group.rows], sorting.top_k)
            part_SN = gate_up_SN.multiply(tokens_SH, gate_up.take(group), group)
            del tokens_SH
            output_SH.multiply(swiglu(part_SN), down.take(group), group)
        ctx.save_for_backward(gate_up_SN.all, weight_S, sorting.slots, sorting.rows, sorting.ends)
        ctx.module, ctx.shape = module, weights_TK.shape  # and not its weights, which may be elsewhere by then
        return combine(output_SH.all, sorting.rows, sorting.top_k, weight_S)

    @staticmethod
    def backward(ctx: Any, gradient_TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate_up_SN, weight_S, slots_S, rows_S, ends_E = ctx.saved_tensors
        gate_up, down = _stacks(ctx.module, gradient_TH.dtype)
        gradient_TH, sorting = gradient_TH.contiguous(), Sorting(slots_S, rows_S, ends_E, ctx.shape[1])
        at_a_time = ctx.module.__dict__.get(_AT_A_TIME)
        tokens_gradient_SH = _Gathering(at_a_time, gradient_TH, len(gate_up_SN), ctx.module.hidden_dim)
        weight_gradient_S = torch.empty(len(gate_up_SN), dtype=torch.float32, device=gradient_TH.device)
        for group in groups(sorting, at_a_time):
            rows, slots = group.rows, sorting.slots[group.rows]
            gradient_SH = gather(gradient_TH, slots, sorting.top_k)
            gradient_SI = grouped_matmul(gradient_SH, down.take(group), group.ends, transposed=True)
            del gradient_SH
            part_SN, weight_gradient_S[rows] = swiglu_backward_(gate_up_SN[rows], gradient_SI, weight_S, slots)
            del gradient_SI
            tokens_gradient_SH.multiply(part_SN, gate_up.take(group), group, transposed=True)
        tokens_gradient_TH = combine(tokens_gradient_SH.all, sorting.rows, sorting.top_k, None)
        weights_gradient_TK = weight_gradient_S[sorting.rows].view(ctx.shape).to(weight_S.dtype)
        return tokens_gradient_TH, weights_gradient_TK, None, None


class _Gathering:
    """The products of all groups: that of a single group as it comes, else each in its place."""

    def __init__(self, at_a_time: int | None, like: torch.Tensor, rows: int, columns: int) -> None:
        self.all = like.new_empty(0 if at_a_time is None else rows, columns)
        self._single = at_a_time is None

    def multiply(
        self, rows_SI: torch.Tensor, weight_JIO: torch.Tensor, group: Group, *, transposed: bool = False
    ) -> torch.Tensor:
        """The product of a group, which is kept."""
        place_SO = None if self._single else self.all[group.rows]
        part_SO = grouped_matmul(rows_SI, weight_JIO, group.ends, transposed=transposed, output_SO=place_SO)
        if self._single:
            self.all = part_SO
        return part_SO


def grouped_experts(
    self: AriaExperts, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Aria's `AriaExperts.forward` for frozen experts, dense or NF4, on the device or in host memory.

    Args:
        self: the module of the experts.
        hidden_states: (tokens, hidden), bf16 or fp32, which is what is computed in; sums are fp32.
        top_k_index: (tokens, top_k), int64, below the number of experts.
        top_k_weights: (tokens, top_k).

    Returns:
        (tokens, hidden) in the dtype of `hidden_states`.

    Raises:
        RuntimeError: an expert is to be trained; or, from the backward, there was one already.
    """
    with torch.autocast(device_type=hidden_states.device.type, enabled=False):
        grouped: Any = _Grouped.apply
        output: torch.Tensor = grouped(hidden_states, top_k_weights, top_k_index, self)
    return output


def _stacks(experts: AriaExperts, dtype: torch.dtype) -> tuple[Stack, ...]:
    """The two projections, gate and up first, to be taken in a dtype."""
    host = experts.__dict__.get(HOST)
    if host is not None:
        held = host.fetch()
        return tuple(NF4Stack(held[name][0], held[name][1], experts, dtype) for name in EXPERT_TENSORS)
    return tuple(_stack(experts, name, dtype) for name in EXPERT_TENSORS)


def _stack(experts: AriaExperts, name: str, dtype: torch.dtype) -> Stack:
    packed = expert_state(experts, name)
    if packed is not None:
        return NF4Stack(packed[0], packed[1], experts, dtype)
    weight = getattr(experts, name)
    if weight.requires_grad:
        raise RuntimeError(f"{name} is to be trained, and its gradient is not computed here")
    return DenseStack(weight, experts, dtype)


ALL_EXPERTS_FUNCTIONS.register(GROUPED, grouped_experts)
