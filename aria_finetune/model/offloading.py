"""Inputs of decoder layers in host memory from forward to backward: what gradient checkpointing keeps of a layer.

TRL's own offloading (`activation_offloading` of its SFTConfig) can't be built on a CPU, also takes what is saved outside of the
layers, which backward asks for first, and empties the allocator's cache at every step. Here a layer's hooks open
`saved_tensors_hooks` around its checkpoint, so that the input is all they see: the checkpoint has hooks of its own for what is
inside. Copies run on the stream that computes: 5 KiB per token, layer and way, which for the real Aria is 2 ms a layer at 8k
tokens and 25 GB/s. Knows nothing of the trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.aria.modeling_aria import AriaTextDecoderLayer


@dataclass(frozen=True)
class _Kept:
    """A tensor in host memory, and the device it came from."""

    value: torch.Tensor
    device: torch.device


class LayerInputs:
    """Takes the inputs of the decoder layers of a model to host memory; `tensors` and `bytes` count them.

    Args:
        model: its layers are checkpointed without reentry whenever they are trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors = self.bytes = 0
        self._before = 0
        self._hooks = saved_tensors_hooks(self._to_host, self._to_device)
        for module in model.modules():
            if isinstance(module, AriaTextDecoderLayer):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._exit, always_call=True)

    def _enter(self, *_: Any) -> None:
        self._before = self.tensors
        self._hooks.__enter__()

    def _exit(self, layer: AriaTextDecoderLayer, _: Any, output: Any) -> None:
        self._hooks.__exit__()
        kept = self.tensors - self._before
        # An output of None is that of a layer that raised.
        if output is not None and layer.training and torch.is_grad_enabled() and kept != 1:
            raise RuntimeError(
                f"{kept} tensors of a decoder layer were to be offloaded instead of its input: it is not checkpointed, or "
                "this version of transformers calls hooks within the checkpoint"
            )

    def _to_host(self, tensor: torch.Tensor) -> _Kept:
        self.tensors += 1
        self.bytes += tensor.nbytes
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        host.copy_(tensor, non_blocking=True)
        return _Kept(host, tensor.device)

    @staticmethod
    def _to_device(kept: _Kept) -> torch.Tensor:
        return kept.value.to(kept.device, non_blocking=True)
