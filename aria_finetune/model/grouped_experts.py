"""Aria's routed experts, all of a layer in a few kernels, without waiting for the GPU: what a run on a GPU takes.

Tokens are sorted by expert. Experts in NF4 become dense in a workspace that all layers share, first for one projection and then
for the other, and only those that a token was sent to. For the backward nothing is kept but tokens and routing: it computes the
first projection again while its weights are dense, which they are twice in a step, however much is checkpointed. The gradient of
the routing weights is <h, gradient @ down_proj.T>, so the second projection is never computed again. Where memory is short,
some experts go at a time, and the host waits once for the GPU to learn which. Adapters of experts take part as pairs of low rank.
Knows nothing of how tokens were routed.
On a CPU the kernels' ways in torch run, and `lean` is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
from aria_finetune.model.expert_factors import Adapters, Factors, tensors_of
from aria_finetune.model.expert_graph import Computation
from aria_finetune.model.grouped_factors import GroupPairs
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


def _output(
    module: AriaExperts,
    adapters: Adapters | None,
    tokens_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    index_TK: torch.Tensor,
) -> torch.Tensor:
    gate_up, down = _stacks(module, tokens_TH.dtype, index_TK)
    tokens_TH, at_a_time = tokens_TH.contiguous(), module.__dict__.get(_AT_A_TIME)
    sorting = sort_by_expert(index_TK, module.num_experts)
    output_SH = _Gathering(at_a_time, tokens_TH, len(sorting.slots))
    for group in groups(sorting, at_a_time):
        gate_up_pairs, down_pairs = _pairs(adapters, group, tokens_TH.dtype)
        tokens_SH = gather(tokens_TH, sorting.slots[group.rows], sorting.top_k)
        gate_up_SN = grouped_matmul(tokens_SH, gate_up.take(group), group.ends)
        if gate_up_pairs:
            gate_up_pairs.add(gate_up_SN, tokens_SH)
        del tokens_SH
        hidden_SI = swiglu(gate_up_SN)
        del gate_up_SN
        product_SH = output_SH.multiply(hidden_SI, down.take(group), group)
        if down_pairs:
            down_pairs.add(product_SH, hidden_SI)
    return combine(output_SH.all, sorting.rows, sorting.top_k, weights_TK.reshape(-1))


def _gradients(
    module: AriaExperts,
    adapters: Adapters | None,
    tokens_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    index_TK: torch.Tensor,
    gradient_TH: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Of tokens and routing weights, and of all factors if there are adapters."""
    gate_up, down = _stacks(module, tokens_TH.dtype, index_TK)
    tokens_TH, gradient_TH, weight_S = tokens_TH.contiguous(), gradient_TH.contiguous(), weights_TK.reshape(-1)
    sorting, at_a_time = sort_by_expert(index_TK, module.num_experts), module.__dict__.get(_AT_A_TIME)
    tokens_gradient_SH = _Gathering(at_a_time, tokens_TH, len(weight_S))
    weight_gradient_S = torch.empty(len(weight_S), dtype=torch.float32, device=tokens_TH.device)
    found = None if adapters is None else (adapters[0].zeros(), adapters[1].zeros())
    for group in groups(sorting, at_a_time):
        slots = sorting.slots[group.rows]
        gate_up_pairs, down_pairs = _pairs(adapters, group, tokens_TH.dtype)
        gradient_SH = gather(gradient_TH, slots, sorting.top_k)
        gradient_SI = grouped_matmul(gradient_SH, down.take(group), group.ends, transposed=True)
        back_SR = down_pairs.add_transposed(gradient_SI, gradient_SH) if down_pairs else None
        del gradient_SH
        tokens_SH, weight_JHN = gather(tokens_TH, slots, sorting.top_k), gate_up.take(group)
        gate_up_SN = grouped_matmul(tokens_SH, weight_JHN, group.ends)
        low_SR = gate_up_pairs.add(gate_up_SN, tokens_SH) if gate_up_pairs else None
        del tokens_SH
        # Rows are gathered again for the gradients of factors rather than kept until their turn.
        if found and down_pairs and back_SR is not None:
            hidden_SI, weight_S1 = swiglu(gate_up_SN), weight_S[slots, None]
            down_pairs.put_a_gradient(found[1], back_SR.mul_(weight_S1), hidden_SI)
            hidden_SR = down_pairs.low(hidden_SI).mul_(weight_S1)
            del hidden_SI
            down_pairs.put_b_gradient(found[1], hidden_SR, gather(gradient_TH, slots, sorting.top_k))
        gate_up_SN, weight_gradient_S[group.rows] = swiglu_backward_(gate_up_SN, gradient_SI, weight_S, slots)
        del gradient_SI
        product_SH = tokens_gradient_SH.multiply(gate_up_SN, weight_JHN, group, transposed=True)
        if found and gate_up_pairs and low_SR is not None:
            gate_up_pairs.put_b_gradient(found[0], low_SR, gate_up_SN)
            back_SR = gate_up_pairs.add_transposed(product_SH, gate_up_SN)
            del gate_up_SN
            gate_up_pairs.put_a_gradient(found[0], back_SR, gather(tokens_TH, slots, sorting.top_k))
    tokens_gradient_TH = combine(tokens_gradient_SH.all, sorting.rows, sorting.top_k, None)
    weight_gradient_TK = weight_gradient_S[sorting.rows].view(weights_TK.shape).to(weights_TK.dtype)
    return tokens_gradient_TH, weight_gradient_TK, *tensors_of(found)


def _pairs(
    adapters: Adapters | None, group: Group, dtype: torch.dtype
) -> tuple[GroupPairs, GroupPairs] | tuple[None, None]:
    if adapters is None:
        return None, None
    gate_up, down = (GroupPairs.of(factors, group.numbers, group.ends, dtype) for factors in adapters)
    return gate_up, down


class _Gathering:
    """Products with a row of `hidden` for every slot: that of a single group as it comes, else each in its place."""

    def __init__(self, at_a_time: int | None, like_TH: torch.Tensor, slots: int) -> None:
        self.all = like_TH.new_empty(0 if at_a_time is None else slots, like_TH.shape[1])
        self._single = at_a_time is None

    def multiply(
        self, rows_SI: torch.Tensor, weight_JIO: torch.Tensor, group: Group, *, transposed: bool = False
    ) -> torch.Tensor:
        """Keep the product of a group, and give it."""
        place_SH = None if self._single else self.all[group.rows]
        product_SH = grouped_matmul(rows_SI, weight_JIO, group.ends, transposed=transposed, output_SO=place_SH)
        if self._single:
            self.all = product_SH
        return product_SH


def grouped_experts(
    self: AriaExperts,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    **factors: Factors,
) -> torch.Tensor:
    """Aria's `AriaExperts.forward` for frozen experts, dense or NF4, on the device or in host memory.

    Args:
        self: the module of the experts.
        hidden_states: (tokens, hidden), bf16 or fp32, which is what is computed in; sums are fp32.
        top_k_index: (tokens, top_k), int64, below the number of experts.
        top_k_weights: (tokens, top_k).
        factors: of the adapters of `gate_up_proj` and `down_proj`, if there are any.

    Returns:
        (tokens, hidden) in the dtype of `hidden_states`.

    Raises:
        RuntimeError: an expert is to be trained.
    """
    return _COMPUTATION(self, hidden_states, top_k_weights, top_k_index, factors)


def _stacks(experts: AriaExperts, dtype: torch.dtype, index_TK: torch.Tensor) -> tuple[Stack, ...]:
    """The two projections, gate and up first, to be taken in a dtype."""
    host = experts.__dict__.get(HOST)
    if host is not None:
        held = host.fetch(index_TK)
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


_COMPUTATION = Computation(_output, _gradients)
ALL_EXPERTS_FUNCTIONS.register(GROUPED, grouped_experts)
