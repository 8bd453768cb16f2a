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

from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state
from aria_finetune.model.parts import Component, Tensor, as_components


def components(model: nn.Module) -> list[Component]:
    """Bytes of every part of `model`, largest first."""
    return as_components(_tensors(model))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter, buffer and packed weight with its quantisation state."""
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if ".parametrizations." in name:
            continue  # counted below, with their scales
        if isinstance(state, QuantState):
            yield Tensor(name, state.shape.numel(), "nf4", _size(parameter) + _state_size(state))
        else:
            yield Tensor(name, parameter.numel(), str(parameter.dtype).removeprefix("torch."), _size(parameter))
    for name, buffer in model.named_buffers():
        yield Tensor(name, 0, str(buffer.dtype).removeprefix("torch."), _size(buffer))
    for path, module in model.named_modules():
        if isinstance(module, AriaExperts):
            for tensor in EXPERT_TENSORS:
                found = expert_state(module, tensor)
                if found is not None:
                    packed, state = found
                    yield Tensor(f"{path}.{tensor}", state.shape.numel(), "nf4", _size(packed) + _state_size(state))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _state_size(state: QuantState) -> int:
    tensors = [state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sum(_size(tensor) for tensor in tensors)
