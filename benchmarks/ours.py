"""Our path: the model as `load_model` leaves it, `add_lora`, and image features computed outside the graph."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from peft import PeftModel
from random_aria import Batch, PutExperts, empty_model, fill, router_weight
from torch import nn
from transformers import AriaConfig, AriaForConditionalGeneration
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.attention import DOCUMENTS
from aria_finetune.model.experts import LEAN
from aria_finetune.model.grouped_experts import GROUPED, limit_experts
from aria_finetune.model.head_loss import score_labels
from aria_finetune.model.holding import Holding
from aria_finetune.model.host_embedding import hold_embedding_on_host
from aria_finetune.model.host_experts import connect_experts, put_on_host
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.model.nf4 import prepare_for_nf4, put_experts
from aria_finetune.model.norm import install_lean_norms
from aria_finetune.model.packed_linear import install_packed_linears
from aria_finetune.model.router import install_float32_routers
from aria_finetune.model.vision import as_encoder_outputs, image_features


def build(
    config: AriaConfig,
    device: str,
    seed: int,
    plan: LoraPlan,
    holding: Holding | None = None,
    put: PutExperts | None = None,
) -> PeftModel:
    """The model with adapters, on `device`; `holding` says how it is held, plainly if it is left out, and `put` how experts are."""
    holding = holding or Holding()
    put = put or (put_on_host if holding.experts == "host" else put_experts)
    config.text_config._experts_implementation = LEAN if device == "cpu" else GROUPED  # noqa: SLF001 (what a run takes there)
    config.text_config._attn_implementation = DOCUMENTS  # noqa: SLF001 (as load_model sets it)
    model = empty_model(config)
    install_lean_norms(model)
    prepare_for_nf4(model, torch.bfloat16, head=holding.lm_head == "nf4")
    install_packed_linears(model)
    fill(model, device, seed, put)
    if holding.embedding == "host":
        hold_embedding_on_host(model)
    if holding.experts == "host":
        connect_experts(model, device)
    if holding.experts_at_a_time is not None:
        limit_experts(model, holding.experts_at_a_time)
    install_float32_routers(model, lambda layer: router_weight(layer, config, device, seed))
    model.requires_grad_(requires_grad=False)
    return add_lora(model, plan, base_name="random", seed=seed)


def put_dense_experts(experts: AriaExperts, name: str, packed: torch.Tensor, state: QuantState) -> None:
    """Leave an expert tensor as a run on 16-bit experts has it: the same weights in the dtype that they were packed from."""
    setattr(experts, name, nn.Parameter(dequantize_4bit(packed, state), requires_grad=False))


def image_inputs(model: AriaForConditionalGeneration, batch: Batch) -> dict[str, Any]:
    """What the forward takes for the images of a batch: their features."""
    if batch.pixels is None:
        return {}
    features = image_features(model, tiles(batch.pixels))
    return {} if features is None else {"mm_encoder_outputs": as_encoder_outputs(features)}


def tiles(pixels_N3SS: torch.Tensor) -> dict[str, torch.Tensor]:
    """Images, each a tile that it fills, as the collator hands them on."""
    images, _, side, _ = pixels_N3SS.shape
    return {
        f"pixels_{side}": pixels_N3SS,
        f"extents_{side}": torch.full((images, 2), side),
        "tile_order": torch.arange(images),
    }


def summed_loss(hidden_BSH: torch.Tensor, labels_BS: torch.Tensor, head_VH: torch.Tensor) -> torch.Tensor:
    """The sum of losses."""
    return -score_labels(hidden_BSH, labels_BS, head_VH).log_probs.sum()
