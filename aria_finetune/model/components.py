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

from aria_finetune.model.host_embedding import HostEmbedding
from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state
from aria_finetune.model.nf4 import HOST as HOST_EXPERTS

DEVICE, HOST = "device", "host"
BUFFERS = "expert_buffers."
PARTS = (
    (BUFFERS, "expert buffers"),
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
    """One part: how many weights it has, their dtypes as held in memory, its bytes, and where they are.

    `home` is `host` for what is held in host memory although the model computes elsewhere; else it is `device`.
    """

    name: str
    parameters: int
    dtype: str
    bytes: int
    home: str = DEVICE


def components(model: nn.Module) -> list[Component]:
    """Bytes of every part of `model`, largest first."""
    parts: dict[tuple[str, str], list[_Tensor]] = {}
    for tensor in _tensors(model):
        parts.setdefault((part_of(tensor.name), tensor.home), []).append(tensor)
    rows = [
        Component(
            part,
            sum(tensor.weights for tensor in tensors),
            "+".join(sorted({tensor.dtype for tensor in tensors})),
            sum(tensor.bytes for tensor in tensors),
            home,
        )
        for (part, home), tensors in parts.items()
    ]
    return sorted(rows, key=lambda row: -row.bytes)


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name."""
    if "lora_" in name:
        return "adapter"
    if "vision_tower." in name or "multi_modal_projector." in name:  # both have a self_attn of their own
        return "vision tower" if "vision_tower." in name else "projector"
    return next((part for mark, part in PARTS if mark in f".{name}."), REST)


@dataclass(frozen=True)
class _Tensor:
    """A parameter, buffer or packed weight with its quantisation state."""

    name: str
    weights: int
    dtype: str
    bytes: int
    home: str = DEVICE


def _tensors(model: nn.Module) -> Iterator[_Tensor]:
    on_host = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, HostEmbedding)}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if ".parametrizations." in name:
            continue  # counted below, with their scales
        if isinstance(state, QuantState):
            yield _Tensor(name, state.shape.numel(), "nf4", parameter.nbytes + _state_size(state))
        else:
            home = HOST if name in on_host else DEVICE
            yield _Tensor(name, parameter.numel(), _dtype(parameter), parameter.nbytes, home)
    for name, buffer in model.named_buffers():
        yield _Tensor(name, 0, _dtype(buffer), buffer.nbytes)
    yield from _expert_tensors(model)


def _expert_tensors(model: nn.Module) -> Iterator[_Tensor]:
    ferries: dict[int, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, AriaExperts):
            continue
        host = module.__dict__.get(HOST_EXPERTS)
        for tensor in EXPERT_TENSORS:
            found = expert_state(module, tensor)
            if found is not None:
                packed, state = found
                size, home = packed.nbytes + _state_size(state), DEVICE if host is None else HOST
                yield _Tensor(f"{path}.{tensor}", state.shape.numel(), "nf4", size, home)
        if host is not None and host.ferry is not None:
            ferries[id(host.ferry)] = host.ferry.bytes
    for size in ferries.values():
        yield _Tensor(BUFFERS, 0, "uint8", size)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _state_size(state: QuantState) -> int:
    tensors = [state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sum(tensor.nbytes for tensor in tensors)
