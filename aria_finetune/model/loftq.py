"""LoftQ (arXiv 2310.08659) in one round: adapters start where they make up for what 4 bit lost.

The NF4 base Q stays as it is, and A, B start as the best pair of their rank for W - Q, so that Q + s B A is nearer to the original
weights W. Where the adapter meets W instead, the start must be taken back: an adapter file holds s (B A - B' A') for the start A', B'
as one pair of twice the rank, [A; A'] and [B, -B'], which is what plain PEFT loads and what is merged. Its first half alone is
the adapter on Q. PEFT's own `loftq` asks for CUDA, puts Q in the place of dense weights and forgets the scaling s. Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from aria_finetune.model.dora import base_weight
from aria_finetune.model.hub_layout import disk_name

LOFTQ = "loftq"
ADAPTER = "default"
PREFIX = "base_model.model."
_START = "_loftq_start"
OVERSAMPLED, ROUNDS = 8, 16
"""Of the randomised decomposition (arXiv 0909.4061), whose spectrum is flat here: within 1% of the best that the rank allows."""

Tensors = Mapping[str, torch.Tensor]


def start_from_error(
    model: PeftModel, read: Callable[[str], torch.Tensor], saved: Callable[[nn.Module], Tensors]
) -> None:
    """Set the adapters of NF4 linears to what their packing lost; the others keep their start, which adds nothing.

    Args:
        model: with fresh adapters.
        read: gives an original weight by its name in the hub layout.
        saved: gives the adapter tensors of a model by the names that they have in a file.
    """
    for name, layer in _packed(model):
        original_OI = read(disk_name(f"{name.removeprefix(PREFIX)}.weight"))
        a_RI, b_OR = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        error_OI = original_OI.to(a_RI.device, torch.float32) - base_weight(layer.get_base_layer())
        left_OK, size_K, right_IK = torch.svd_lowrank(error_OI, min(len(a_RI) + OVERSAMPLED, *error_OI.shape), ROUNDS)
        rank = min(len(a_RI), len(size_K))
        root_R = (size_K[:rank] / layer.scaling[ADAPTER]).sqrt()
        a_RI.data[:rank], b_OR.data[:, :rank] = root_R[:, None] * right_IK[:, :rank].T, left_OK[:, :rank] * root_R
    set_start(model, {name: tensor.detach().cpu().clone() for name, tensor in saved(model).items()})


def set_start(model: nn.Module, start: Tensors) -> None:
    """Remember what the adapters of a model started as, by the names that they have in a file."""
    model.__dict__[_START] = dict(start)


def start_of(model: nn.Module) -> Tensors | None:
    """What `set_start` was given; None where no start is to be taken back."""
    start: Tensors | None = model.__dict__.get(_START)
    return start


def joined(now: Tensors, start: Tensors) -> dict[str, torch.Tensor]:
    """Pairs of twice the rank that say what has changed since the start."""
    return {
        name: torch.cat([tensor, start[name]]) if _is_a(name) else torch.cat([tensor, -start[name]], dim=1)
        for name, tensor in ((name, tensor.detach().cpu()) for name, tensor in now.items())
    }


def parted(pairs: Tensors) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The inverse of `joined`: how the adapters are now, and how they started."""
    halves = {name: tensor.chunk(2, dim=0 if _is_a(name) else 1) for name, tensor in pairs.items()}
    now = {name: half[0] for name, half in halves.items()}
    return now, {name: half[1] if _is_a(name) else -half[1] for name, half in halves.items()}


def joined_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that goes with pairs of twice the rank: of the same scaling."""
    alpha = config["lora_alpha"] * (math.sqrt(2) if config.get("use_rslora") else 2)
    return {**config, "r": 2 * config["r"], "lora_alpha": alpha}


def keep_first_half(model: PeftModel) -> None:
    """Of an adapter that was loaded from a file, leave on NF4 linears what was trained on them; on others all of it is right."""
    for _, layer in _packed(model):
        for linear, dimension in ((layer.lora_A[ADAPTER], 0), (layer.lora_B[ADAPTER], 1)):
            half = linear.weight.data.chunk(2, dimension)[0].contiguous()
            linear.weight = nn.Parameter(half, requires_grad=linear.weight.requires_grad)


def _packed(model: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), bnb.nn.Linear4bit):
            yield name, layer


def _is_a(name: str) -> bool:
    return ".lora_A." in name
