"""Routed experts that stay in host memory, for cards that can't hold them: a layer is copied over when it is its turn.

Two buffers on the device hold a layer each. While one is used, the next layer is copied into the other on a stream of its
own: upwards in a forward, downwards in a backward, where the forward that gradient checkpointing repeats and the gradient
share one copy. So all bytes cross the bus twice for each batch that is trained on. Knows NF4 and its quantisation states, not
what is computed of them. On a CPU the copies are made all the same, and nothing is gained.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from bitsandbytes.functional import QuantState
from torch import nn
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.errors import UserError
from aria_finetune.model.nf4 import EXPERT_TENSORS, HOST

Stack = tuple[torch.Tensor, QuantState]
"""Packed bytes of a projection of all experts, and the state that dequantises them."""
ALIGNMENT = 256
"""Of every tensor within the bytes of a layer; what CUDA's own allocations have."""
_WAITING = "waiting_for_host"
"""The attribute of an experts module of which one projection is there."""
GIB = 2**30


class HostExperts:
    """The packed experts of a layer in one run of host memory.

    `stacks` has them where they are; `fetch` has them on the device, until the next but one call for another layer.

    Args:
        stacks: the two projections by their names, anywhere.
    """

    def __init__(self, stacks: Mapping[str, Stack]) -> None:
        self._plan = _Plan(stacks)
        self.bytes = _pages(self._plan.size)
        self.stacks = self._plan.read(self.bytes)
        for name, stack in stacks.items():
            for place, tensor in zip(_tensors(*self.stacks[name]), _tensors(*stack), strict=True):
                place.copy_(tensor)
        self._ferry: Ferry | None = None
        self._number = 0

    def connect(self, ferry: Ferry, number: int) -> None:
        """Let layer `number` of a ferry be this one."""
        self._ferry, self._number = ferry, number

    def fetch(self) -> dict[str, Stack]:
        """The projections on the device, by their names.

        Raises:
            RuntimeError: `connect` was not called.
        """
        if self._ferry is None:
            raise RuntimeError("the experts are in host memory, and nothing brings them to the device")
        return self.read(self._ferry.fetch(self._number))

    def read(self, held: torch.Tensor) -> dict[str, Stack]:
        """Views of a copy of `bytes`."""
        return self._plan.read(held)

    @property
    def ferry(self) -> Ferry | None:
        """What brings the layers to the device."""
        return self._ferry

    def pin(self) -> None:
        """Let the GPU read the bytes at full speed, and while it computes.

        torch's own pinned memory comes in powers of two, which for the real Aria would be a quarter more.

        Raises:
            UserError: the system does not allow it.
        """
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address = self.bytes.data_ptr()
        status = runtime.cudaHostRegister(address, len(self.bytes), 0)
        if int(status) != 0:
            raise UserError(
                f"{len(self.bytes) / GIB:.2f} GiB of host memory can't be pinned for the GPU (CUDA error {int(status)})",
                fix="free some memory of the host, or set moe.experts_on=device",
            )
        weakref.finalize(self, runtime.cudaHostUnregister, address)


class Ferry:
    """Brings layers of one shape to the device, each into one of two buffers.

    Args:
        layers: in the order in which a forward comes by them; on CUDA their bytes are pinned.
        device: where they are used.

    Raises:
        ValueError: the layers are not of one size.
    """

    def __init__(self, layers: Sequence[HostExperts], device: torch.device | str) -> None:
        sizes = {len(layer.bytes) for layer in layers}
        if len(sizes) != 1:
            raise ValueError(f"the layers are not of one size: {sorted(sizes)}")
        size = sizes.pop()
        self._layers = list(layers)
        self._berths = [_Berth(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(2)]
        on_cuda = torch.device(device).type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        self._last, self._step = 0, 1
        self.copied_bytes = 0

    @property
    def bytes(self) -> int:
        """Of both buffers."""
        return sum(len(berth.bytes) for berth in self._berths)

    def fetch(self, number: int) -> torch.Tensor:
        """The bytes of a layer on the device; those of the layer that will likely be next are on their way after it."""
        if number != self._last:
            self._step = 1 if number > self._last else -1
        self._last = number
        here, other = self._berths
        if number == other.number:
            here, other = other, here
        if number != here.number:
            self._copy(number, here)
        if here.arrived is not None:
            torch.cuda.current_stream(here.bytes.device).wait_event(here.arrived)
        following = number + self._step
        if not 0 <= following < len(self._layers):
            following = number - self._step  # a forward has ended and its backward comes, or the other way about
        if following != other.number and 0 <= following < len(self._layers):
            self._copy(following, other)
        return here.bytes

    def _copy(self, number: int, berth: _Berth) -> None:
        """Begin to copy a layer into a buffer, once all that was begun before has read what is in it."""
        source = self._layers[number].bytes
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(berth.bytes.device))
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            berth.bytes.copy_(source, non_blocking=True)
        if self._stream is not None:
            berth.arrived = self._stream.record_event()
        berth.number = number
        self.copied_bytes += len(source)


@dataclass
class _Berth:
    """A buffer on the device, the layer that is in it or on its way, and the event of its arrival."""

    bytes: torch.Tensor
    number: int | None = None
    arrived: torch.cuda.Event | None = None


def put_on_host(experts: AriaExperts, name: str, packed: torch.Tensor, state: QuantState) -> None:
    """Hold `experts.gate_up_proj` or `.down_proj` in host memory; once it has both, `connect_experts` can be called.

    They are no parameters any more, so that nothing that moves a model moves them.
    """
    delattr(experts, name)
    waiting = experts.__dict__.setdefault(_WAITING, {})
    waiting[name] = (packed, state)
    if len(waiting) == len(EXPERT_TENSORS):
        setattr(experts, HOST, HostExperts(waiting))
        delattr(experts, _WAITING)


def connect_experts(model: nn.Module, device: torch.device | str) -> Ferry:
    """Bring the experts of a model that are in host memory to `device` from now on.

    Raises:
        UserError: host memory can't be pinned.
    """
    layers: list[HostExperts] = [module.__dict__[HOST] for module in model.modules() if isinstance(module, AriaExperts)]
    if torch.device(device).type == "cuda":
        for layer in layers:
            layer.pin()
    ferry = Ferry(layers, device)
    for number, layer in enumerate(layers):
        layer.connect(ferry, number)
    return ferry


class _Plan:
    """Where each tensor of a layer lies in its bytes."""

    def __init__(self, stacks: Mapping[str, Stack]) -> None:
        self._stacks: dict[str, tuple[list[tuple[slice, torch.dtype, torch.Size]], QuantState]] = {}
        self.size = 0
        for name, (packed, state) in stacks.items():
            places = []
            for tensor in _tensors(packed, state):
                places.append((slice(self.size, self.size + tensor.nbytes), tensor.dtype, tensor.shape))
                self.size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
            self._stacks[name] = (places, state)

    def read(self, held: torch.Tensor) -> dict[str, Stack]:
        """Views of bytes that are laid out so."""
        return {
            name: _stack([held[place].view(dtype).view(shape) for place, dtype, shape in places], state)
            for name, (places, state) in self._stacks.items()
        }


def _tensors(packed: torch.Tensor, state: QuantState) -> list[torch.Tensor]:
    return [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]


def _stack(tensors: Sequence[torch.Tensor], like: QuantState) -> Stack:
    packed, absmax, code, offset, nested_absmax, nested_code = tensors
    nested = QuantState(
        absmax=nested_absmax, code=nested_code, blocksize=like.state2.blocksize, dtype=like.state2.dtype
    )
    state = QuantState(
        absmax=absmax,
        shape=like.shape,
        dtype=like.dtype,
        blocksize=like.blocksize,
        code=code,
        quant_type=like.quant_type,
        offset=offset,
        state2=nested,
    )
    return packed, state


def _pages(size: int) -> torch.Tensor:
    """Host memory in pages of its own: only whole pages can be pinned, and no page twice."""
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_DONTFORK"):
        mapping.madvise(mmap.MADV_DONTFORK)  # a forked loader worker would get a copy of what is pinned
    return torch.frombuffer(mapping, dtype=torch.uint8)
