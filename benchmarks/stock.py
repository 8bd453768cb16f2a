"""The path to measure against: what transformers, bitsandbytes and PEFT do with Aria when they are set up well.

Attention and shared experts are `Linear4bit`, as `load_in_4bit` makes them; routed experts are NF4 by
bitsandbytes' parametrisation; LoRA by PEFT on the decoder's attention and, as target parameter, the router.
Routing is in bf16 and the vision tower runs inside the graph, as they do by default.
"""

from __future__ import annotations

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized
from peft import LoraConfig, PeftModel, get_peft_model
from random_aria import Batch, empty_model, fill
from torch import nn
from transformers import AriaConfig, AriaForConditionalGeneration, BitsAndBytesConfig
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from trl.kernels import ChunkedLogProbFunction

from aria_finetune.model.head_loss import IGNORED
from aria_finetune.model.lora import LoraPlan
from aria_finetune.model.nf4 import UNQUANTISED
from aria_finetune.model.targets import linear_pattern, parameter_names

TRL_CHUNK = 32_768
"""Entries of the vocabulary at a time, as TRL's trainer has it (trl/trainer/utils.py)."""


def build(config: AriaConfig, device: str, seed: int, plan: LoraPlan) -> PeftModel:
    """The model with adapters, on `device`."""
    quantiser = Bnb4BitHfQuantizer(
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=list(UNQUANTISED),
        )
    )
    model = empty_model(config)
    quantiser.preprocess_model(model, device_map={"": device})
    fill(model, device, seed, put_experts)
    quantiser.postprocess_model(model)
    model.requires_grad_(requires_grad=False)
    return get_peft_model(
        model,
        LoraConfig(
            r=plan.rank,
            lora_alpha=plan.alpha,
            lora_dropout=0.0,  # PEFT refuses any other beside a router adapter
            target_modules=linear_pattern(["attention"]),
            target_parameters=parameter_names(["router"]),
            task_type="CAUSAL_LM",
        ),
    )


def put_experts(experts: AriaExperts, name: str, packed: torch.Tensor, state: QuantState) -> None:
    """Leave an expert tensor as `replace_parameter_4bit(compress_statistics=True, quant_type="nf4")` leaves it."""
    setattr(experts, name, nn.Parameter(packed, requires_grad=False))
    replace_parameter_4bit_prequantized(experts, name, state.as_dict(packed=True), packed.device)


def image_inputs(model: AriaForConditionalGeneration, batch: Batch) -> dict[str, torch.Tensor]:  # noqa: ARG001 (as ours)
    """What the forward takes for the images of a batch: pixels and mask, as the stock processor makes them."""
    if batch.normalised_pixels is None:
        return {}
    images, _, height, width = batch.normalised_pixels.shape
    mask = torch.ones(images, height, width, dtype=torch.bool, device=batch.normalised_pixels.device)
    return {"pixel_values": batch.normalised_pixels, "pixel_mask": mask}


def summed_loss(hidden_BSH: torch.Tensor, labels_BS: torch.Tensor, head_VH: torch.Tensor) -> torch.Tensor:
    """The sum of losses as TRL's fused head computes it (`add_fused_lm_head` in trl/trainer/utils.py)."""
    hidden_BSH, labels_BS = hidden_BSH[:, :-1], labels_BS[:, 1:]
    mask_BS = labels_BS != IGNORED
    outputs = ("log_probs", "entropy", "is_top1")
    if hidden_BSH.is_cuda:
        rows_TH, labels_T = hidden_BSH[mask_BS], labels_BS[mask_BS]
    else:
        rows_TH, labels_T = hidden_BSH.reshape(-1, hidden_BSH.shape[-1]), labels_BS.clamp(min=0).reshape(-1)
    log_probs_T, *_ = ChunkedLogProbFunction.apply(rows_TH, head_VH, None, labels_T, 1.0, TRL_CHUNK, None, 1.0, outputs)
    return -(log_probs_T if hidden_BSH.is_cuda else log_probs_T * mask_BS.reshape(-1)).sum()
