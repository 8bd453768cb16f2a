"""The parts of Aria that a person knows by name, which of them a weight belongs to, and their bytes. Knows names only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Home = Literal["device", "host"]
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
class Tensor:
    """A parameter, a buffer, or a packed weight with its scales: its name, how many weights it has, dtype and bytes."""

    name: str
    weights: int
    dtype: str
    bytes: int
    home: Home = "device"


@dataclass(frozen=True)
class Component:
    """One part: how many weights it has, their dtypes as held in memory, its bytes, and where they are.

    `home` is `host` for what is held in host memory although the model computes elsewhere; else it is `device`.
    """

    name: str
    parameters: int
    dtype: str
    bytes: int
    home: Home = "device"


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name."""
    if "lora_" in name:
        return "adapter"
    if "vision_tower." in name or "multi_modal_projector." in name:  # both have a self_attn of their own
        return "vision tower" if "vision_tower." in name else "projector"
    return next((part for mark, part in PARTS if mark in f".{name}."), REST)


def as_components(tensors: Iterable[Tensor]) -> list[Component]:
    """The parts that some tensors make up, largest first."""
    parts: dict[tuple[str, Home], list[Tensor]] = {}
    for tensor in tensors:
        parts.setdefault((part_of(tensor.name), tensor.home), []).append(tensor)
    made = [
        Component(
            part,
            sum(tensor.weights for tensor in members),
            "+".join(sorted({tensor.dtype for tensor in members})),
            sum(tensor.bytes for tensor in members),
            home,
        )
        for (part, home), members in parts.items()
    ]
    return sorted(made, key=lambda component: -component.bytes)
