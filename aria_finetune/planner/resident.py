"""What stays in memory for a whole run: the model's components, the adapter, its gradients and the optimizer's state.

Sizes follow from shapes alone, byte for byte as `model.components` counts them in a loaded model. Knows nothing of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aria_finetune.model.parts import BUFFERS, Component, Home, Tensor, as_components, part_of
from aria_finetune.model.targets import Target, seeing_weight_names, weight_names
from aria_finetune.planner.architecture import Architecture

BLOCK, NESTED_BLOCK = 64, 256
"""Weights to a scale, and scales to a scale of scales (arXiv 2305.14314, double quantisation)."""
CODE_BYTES = (16 + 256) * 4
"""The code values of NF4 and of the quantised scales, fp32."""
OFFSET_BYTES = 4
FLOAT32 = 4
DTYPES = {2: "bfloat16", 4: "float32"}
OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_torch_fused": 8.0, "adamw_8bit": 2.03, "paged_adamw_8bit": 2.03}
"""Of state per trained weight: two fp32 numbers, or two bytes and a scale for every 256 of them."""


@dataclass(frozen=True)
class Holding:
    """How the weights are held: `width` bytes to a weight that is not packed; `packed` puts the decoder in NF4.

    Without `vision` the tower and the projector are not loaded. What is `on_host` is in host memory although the model
    computes elsewhere.
    """

    packed: bool = True
    width: int = 2
    vision: bool = True
    packed_head: bool = False
    embedding_on_host: bool = False
    experts_on_host: bool = False


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in fp32: which parts of the decoder have one, of which rank, in how many layers; None: in all of them."""

    targets: Sequence[Target]
    rank: int
    optimizer: str = "adamw_torch"
    layers: int | None = None
    dora: bool = False

    def parameters(self, architecture: Architecture) -> int:
        """How many weights are trained; DoRA has a magnitude for each row of a weight besides."""
        layers = architecture.layers if self.layers is None else self.layers
        return layers * self.layer_parameters(architecture, self.targets) + self.seeing_parameters(architecture)

    def seeing_parameters(self, architecture: Architecture) -> int:
        """How many of them are in tower and projector."""
        changed = seeing_weight_names(self.targets, range(architecture.vision.layers))
        shapes = (shape for name, shape in architecture.weights() if name in changed)
        return sum(self.rank * (out + into) + (out if self.dora else 0) for out, into in shapes)

    def layer_parameters(self, architecture: Architecture, targets: Sequence[Target]) -> int:
        """How many weights adapters on some targets have in a decoder layer; each expert of a stack has a pair of its own."""
        changed = weight_names(targets)
        return sum(
            self.rank * math.prod(shape[:-2]) * (shape[-2] + shape[-1]) + (shape[0] if self.dora else 0)
            for name, shape in architecture.decoder_layer()
            if name in changed
        )

    def outputs(self, architecture: Architecture) -> int:
        """What all linears of a layer that have an adapter give for a token."""
        changed = weight_names(self.targets)
        return sum(shape[0] for name, shape in architecture.decoder_layer() if name in changed)


def nf4_bytes(weights: int) -> int:
    """Bytes of a tensor in NF4 with double quantisation, with all its scales."""
    scales = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + scales + math.ceil(scales / NESTED_BLOCK) * FLOAT32 + CODE_BYTES + OFFSET_BYTES


def model_components(architecture: Architecture, holding: Holding) -> list[Component]:
    """The parts of the base model, largest first."""
    return as_components(_tensors(architecture, holding))


def adapter_bytes(adapter: Adapter, architecture: Architecture) -> tuple[int, int, int]:
    """Bytes of the adapter, of its gradients, and of the optimizer's state."""
    trained = adapter.parameters(architecture)
    return trained * FLOAT32, trained * FLOAT32, round(trained * OPTIMIZER_BYTES[adapter.optimizer])


def _tensors(architecture: Architecture, holding: Holding) -> Iterator[Tensor]:
    hosted = {"embedding": holding.embedding_on_host, "routed experts": holding.experts_on_host}
    for name, shape in architecture.weights():
        weights, part = math.prod(shape), part_of(name)
        home: Home = "host" if hosted.get(part) else "device"
        if part in ("vision tower", "projector") and not holding.vision:
            continue
        packed = part in ("routed experts", "shared experts", "attention") and holding.packed
        if packed or (part == "lm_head" and holding.packed_head):
            yield Tensor(name, weights, "nf4", nf4_bytes(weights), home)
        elif part == "router":
            yield Tensor(name, weights, "float32", weights * FLOAT32)
        else:
            yield Tensor(name, weights, DTYPES[holding.width], weights * holding.width, home)
    if holding.experts_on_host:  # two layers of them on the device, one in use and one on its way
        layer = (math.prod(shape) for name, shape in architecture.decoder_layer() if name.startswith("mlp.experts."))
        yield Tensor(BUFFERS, 0, "uint8", 2 * sum(map(nf4_bytes, layer)))
    # The frequencies of the rotary embedding, and those they were before any scaling.
    yield Tensor("inv_freq", 0, "float32", 2 * (architecture.head_dim // 2) * FLOAT32)
