"""An Aria without weights, and the parameters that its weights become as their pieces come in.

Knows modules and 4-bit weights. Knows nothing of where the pieces are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, Protocol

import bitsandbytes as bnb
import torch
from accelerate import init_empty_weights
from bitsandbytes.functional import QuantState
from torch import nn
from transformers import AriaConfig, AriaForConditionalGeneration
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.holding import Holding
from aria_finetune.model.host_experts import put_on_host
from aria_finetune.model.nf4 import EXPERT_TENSORS, HEAD, Packer, put_experts, put_linear, quantize_linear

Kind = Literal["dense", "linear", "experts", "head"]
PIECE_BYTES = 32 << 20
"""About as much of a dense tensor as is read at a time."""
Put = Callable[[torch.Tensor, QuantState], None]
"""Gives a module a packed weight."""


class Filling(Protocol):
    """A parameter in the making. `height` is how many rows a piece of it may have at most."""

    height: int

    def add(self, start: int, rows: torch.Tensor) -> None:
        """Take rows from `start` on, in any floating dtype."""
        ...

    def finish(self) -> None:
        """Give the module its parameter; all rows were added."""
        ...


def empty_aria(
    config: AriaConfig, dtype: torch.dtype, *, attention: str | dict[str, str], experts: dict[str, str]
) -> AriaForConditionalGeneration:
    """The modules in evaluation mode, with parameters that take no memory yet and real buffers.

    Args:
        config: the architecture.
        dtype: of all parameters.
        attention: transformers' name of an attention implementation, or names by sub-configuration.
        experts: its names of experts implementations, by sub-configuration.
    """
    with init_empty_weights(include_buffers=False):
        model = AriaForConditionalGeneration._from_config(  # noqa: SLF001 (no public way takes these)
            config, dtype=dtype, attn_implementation=attention, experts_implementation=experts
        )
    empty: AriaForConditionalGeneration = model.eval()
    return empty


def places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Kind]]:
    """Every parameter of an empty model: its name, its module, its name there, and what it is to be.

    Experts and linears become 4-bit where `prepare_for_nf4` has made the linears so.
    """
    packed = any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())
    for path, module in model.named_modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            full = f"{path}.{name}" if path else name
            if packed and isinstance(module, AriaExperts) and name in EXPERT_TENSORS:
                yield full, module, name, "experts"
            elif isinstance(module, bnb.nn.Linear4bit) and name == "weight":
                yield full, module, name, "head" if path == HEAD else "linear"
            else:
                yield full, module, name, "dense"


def fillings(model: nn.Module, device: str, dtype: torch.dtype, holding: Holding | None = None) -> dict[str, Filling]:
    """The parameters of an empty model by their names, each ready to be filled on `device` or where it is held."""
    made: dict[str, Filling] = {}
    holding = holding or Holding()
    for full, module, name, kind in places(model):
        home, weight = holding.home(full, device), getattr(module, name)
        match kind:
            case "experts":
                put = partial(put_on_host if holding.experts == "host" else put_experts, module, name)
                made[full] = _Packed(partial(Packer, weight.shape, dtype, home, device), height=1, put=put)
            case "head":
                put, packer = partial(put_linear, module), partial(Packer, weight.shape, dtype, device)
                made[full] = _Packed(packer, height=dense_height(weight), put=put)
            case "linear":
                made[full] = _Linear(module, name, dtype, device)
            case "dense":
                made[full] = _Dense(module, name, home)
    return made


def dense_height(parameter: torch.Tensor) -> int:
    """How many rows of a dense tensor are read at a time."""
    return max(1, PIECE_BYTES // max(1, parameter[0].nbytes))


class _Dense:
    def __init__(self, module: nn.Module, name: str, device: str) -> None:
        parameter = getattr(module, name)
        self.height = dense_height(parameter)
        self._module, self._name = module, name
        self._shape, self._dtype, self._device = parameter.shape, parameter.dtype, device
        self._value: torch.Tensor | None = None

    def add(self, start: int, rows: torch.Tensor) -> None:
        if self._value is None:
            self._value = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        self._value[start : start + len(rows)].copy_(rows)

    def finish(self) -> None:
        assert self._value is not None  # noqa: S101 (all rows were added)
        setattr(self._module, self._name, nn.Parameter(self._value, requires_grad=False))
        self._value = None


class _Packed:
    def __init__(self, make_packer: Callable[[], Packer], *, height: int, put: Put) -> None:
        self.height = height
        self._make_packer, self._put = make_packer, put
        self._packer: Packer | None = None

    def add(self, start: int, rows: torch.Tensor) -> None:
        if self._packer is None:
            self._packer = self._make_packer()
        self._packer.add(start, rows)

    def finish(self) -> None:
        assert self._packer is not None  # noqa: S101 (all rows were added)
        self._put(*self._packer.finish())
        self._packer = None


class _Linear:
    def __init__(self, module: nn.Module, name: str, dtype: torch.dtype, device: str) -> None:
        self.height: int = getattr(module, name).shape[0]
        self._module, self._dtype, self._device = module, dtype, device

    def add(self, start: int, rows: torch.Tensor) -> None:  # noqa: ARG002 (there is one piece)
        put_linear(self._module, *quantize_linear(rows.to(self._device, self._dtype)))

    def finish(self) -> None:
        pass
