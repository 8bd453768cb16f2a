"""How many bytes each part of a loaded Aria takes.

The parts are those of `model.parts`. 4-bit parts count their packed bytes and all their scales. Knows
nothing of how the model was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from bitsandbytes.functional import QuantState
from torch import nn
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.host_embedding import HostEmbedding
from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state
from aria_finetune.model.nf4 import HOST as HOST_EXPERTS
from aria_finetune.model.parts import BUFFERS, Component, Home, Tensor, as_components


def components(model: nn.Module) -> list[Component]:
    """Bytes of every part of `model`, largest first."""
    return as_components(_tensors(model))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    on_host = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, HostEmbedding)}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if ".parametrizations." in name:
            continue  # counted below, with their scales
        if isinstance(state, QuantState):
            yield Tensor(name, state.shape.numel(), "nf4", parameter.nbytes + _state_size(state))
        else:
            home: Home = "host" if name in on_host else "device"
            yield Tensor(name, parameter.numel(), _dtype(parameter), parameter.nbytes, home)
    for name, buffer in model.named_buffers():
        yield Tensor(name, 0, _dtype(buffer), buffer.nbytes)
    yield from _expert_tensors(model)


def _expert_tensors(model: nn.Module) -> Iterator[Tensor]:
    ferries: dict[int, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, AriaExperts):
            continue
        host = module.__dict__.get(HOST_EXPERTS)
        for tensor in EXPERT_TENSORS:
            found = expert_state(module, tensor)
            if found is not None:
                packed, state = found
                home: Home = "device" if host is None else "host"
                yield Tensor(f"{path}.{tensor}", state.shape.numel(), "nf4", packed.nbytes + _state_size(state), home)
        if host is not None and host.ferry is not None:
            ferries[id(host.ferry)] = host.ferry.bytes
    for size in ferries.values():
        yield Tensor(BUFFERS, 0, "uint8", size)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _state_size(state: QuantState) -> int:
    tensors = [state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sum(tensor.nbytes for tensor in tensors)
