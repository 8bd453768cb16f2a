"""How many bytes each part of a loaded Aria takes.

The parts are those a person knows by name. 4-bit parts count their packed bytes and all their scales. Knows
nothing of how the model was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from bitsandbytes.functional import QuantState
from torch import nn
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state

PARTS = (
    (".experts.", "routed experts"),
    (".shared_experts.", "shared experts"),
    (".self_attn.", "attention"),
    (".router.", "router"),
    ("embed_tokens.", "embedding"),
    ("lm_head.", "lm_head"),
)
"""Marks in parameter names and the part they stand for; what matches none is a norm or a buffer."""
REST = "norms and buffers"


@dataclass(frozen=True)
class Component:
    """One part: how many weights it has, their dtypes as held in memory, and its bytes."""

    name: str
    parameters: int
    dtype: str
    bytes: int


def components(model: nn.Module) -> list[Component]:
    """Bytes of every part of `model`, largest first."""
    counts: dict[str, tuple[int, set[str], int]] = {}
    for name, numel, dtype, size in _tensors(model):
        part = part_of(name)
        parameters, dtypes, total = counts.get(part, (0, set(), 0))
        counts[part] = (parameters + numel, dtypes | {dtype}, total + size)
    rows = [Component(part, n, "+".join(sorted(dtypes)), size) for part, (n, dtypes, size) in counts.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name."""
    if "lora_" in name:
        return "adapter"
    if "vision_tower." in name or "multi_modal_projector." in name:  # both have a self_attn of their own
        return "vision tower" if "vision_tower." in name else "projector"
    return next((part for mark, part in PARTS if mark in f".{name}."), REST)


def _tensors(model: nn.Module) -> Iterator[tuple[str, int, str, int]]:
    """Name, number of weights, dtype and bytes of every parameter, buffer and quantisation state."""
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if ".parametrizations." in name:
            continue  # counted below, with their scales
        if isinstance(state, QuantState):
            yield name, state.shape.numel(), "nf4", _size(parameter) + _state_size(state)
        else:
            yield name, parameter.numel(), str(parameter.dtype).removeprefix("torch."), _size(parameter)
    for name, buffer in model.named_buffers():
        yield name, 0, str(buffer.dtype).removeprefix("torch."), _size(buffer)
    for path, module in model.named_modules():
        if isinstance(module, AriaExperts):
            for tensor in EXPERT_TENSORS:
                found = expert_state(module, tensor)
                if found is not None:
                    packed, state = found
                    yield f"{path}.{tensor}", state.shape.numel(), "nf4", _size(packed) + _state_size(state)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _state_size(state: QuantState) -> int:
    tensors = [state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sum(_size(tensor) for tensor in tensors)
