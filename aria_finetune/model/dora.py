"""DoRA (arXiv 2402.09353) whose norms are exact: PEFT's layer with another forward.

The weight of a linear becomes m (W + s B A) / |W + s B A|, with a trained magnitude m for each row and the norms taken as constants
in the backward (section 4.3 of the paper). PEFT computes the norms in the dtype of the activations: in bf16 they are off by up
to 0.4%, so that an adapter that has learned nothing changes what the model says, by more than many learn. Here they are those of
the dequantised weight in fp32, a piece of it at a time. Files are PEFT's. Knows nothing of Aria.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from aria_finetune.model.expert_weights import DenseWeight, Weight
from aria_finetune.model.nf4 import BLOCK
from aria_finetune.model.packed_linear import weight_of

ADAPTER = "default"
PIECE_WEIGHTS = 1 << 22
"""Of a weight that is in fp32 at a time: 16 MiB."""


class Magnitude(DoraLinearLayer):  # type: ignore[misc]
    """Scales a linear with a LoRA adapter; `weight` (out,) is the length of each row, fp32."""

    def __init__(self, weight_O: torch.Tensor, *, trained: bool) -> None:
        super().__init__(fan_in_fan_out=False)
        self.weight = nn.Parameter(weight_O.float(), requires_grad=trained)

    def forward(
        self,
        x: torch.Tensor,
        *,
        lora_A: nn.Linear,
        lora_B: nn.Linear,
        scaling: float,
        base_layer: nn.Module,
        base_result: torch.Tensor | None = None,
        adapter_name: str = ADAPTER,  # noqa: ARG002 (PEFT's)
    ) -> torch.Tensor:
        """What is to be added to the linear's output (..., out), in its dtype.

        Args:
            x: the input (..., in), dropped out where there is dropout.
            lora_A: of the adapter.
            lora_B: of the adapter.
            scaling: of the adapter.
            base_layer: the linear, frozen, dense or NF4.
            base_result: its output, or None where `x` is not its input because of dropout.
            adapter_name: there is one.
        """
        if base_result is None:
            base_result = base_layer(_fitting(x, base_layer))
        bias_O = getattr(base_layer, "bias", None)
        product = base_result if bias_O is None else base_result - bias_O
        norms_O = row_norms(base_layer, lora_A.weight, lora_B.weight, scaling)
        factor_O = self.weight / norms_O
        added = (factor_O - 1) * product + (factor_O * scaling) * lora_B(lora_A(x))
        fitting: torch.Tensor = added.to(base_result.dtype)
        return fitting


@torch.no_grad()
def row_norms(base: nn.Module, a_RI: torch.Tensor, b_OR: torch.Tensor, scaling: float) -> torch.Tensor:
    """The length of each row of W + scaling B A, (out,), fp32; never 0, so that a row of zeros stays one."""
    weight = _weight(base)
    outer, inner = weight.shape
    step = max(PIECE_WEIGHTS // inner, 1)
    norms_O = torch.empty(outer, device=a_RI.device)
    with torch.autocast(a_RI.device.type, enabled=False):
        for start in range(0, outer, step):
            stop = min(start + step, outer)
            piece_PI = weight.read(start, stop, torch.float32)
            norms_O[start:stop] = torch.addmm(piece_PI, b_OR[start:stop], a_RI, alpha=scaling).norm(dim=1)
    return norms_O.clamp_min_(torch.finfo(torch.float32).tiny)


def use_exact_norms(model: nn.Module, *, fresh: bool) -> None:
    """Put a `Magnitude` in the place of each of PEFT's; a fresh one is such that the model says what it says without adapters."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_magnitude_vector:
            theirs = layer.lora_magnitude_vector[ADAPTER].weight
            pair = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
            start_O = row_norms(layer.get_base_layer(), *pair, layer.scaling[ADAPTER]) if fresh else theirs.data
            layer.lora_magnitude_vector[ADAPTER] = Magnitude(start_O, trained=theirs.requires_grad)


def base_weight(base: nn.Module) -> torch.Tensor:
    """All of the weight (out, in) of a linear, dense or NF4, fp32."""
    weight = _weight(base)
    return weight.read(0, weight.shape[0], torch.float32)


def _weight(base: Any) -> Weight:
    """The weight (out, in) of a linear."""
    if isinstance(base, bnb.nn.Linear4bit) and base.in_features % BLOCK == 0:
        return weight_of(base)
    return DenseWeight(dequantize_module_weight(base).data)


def _fitting(x: torch.Tensor, base: Any) -> torch.Tensor:
    """An input in the dtype of the weights, unless they are packed, and then any will do."""
    return x.to(base.weight.dtype) if base.weight.dtype.is_floating_point else x
