"""LoRA on Aria's decoder: where the adapters go, and what may be saved.

One normal PEFT adapter (arXiv 2106.09685) on attention linears and on the router's bare weight. Knows nothing
of the trainer; that its parameters stay fp32 there is the trainer's care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AriaForConditionalGeneration

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.errors import UserError
from aria_finetune.model.dropout import RowDropout, RowRandomness
from aria_finetune.redaction import redact

Target = Literal["attention", "router"]
ATTENTION = r"model\.language_model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)"
"""Anchored to the decoder: bare names would also hit the vision tower and the projector."""
ROUTER = "mlp.router.weight"
_PER_LAYER = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "router": ("router",)}


@dataclass(frozen=True)
class LoraPlan:
    """Size and place of the adapters; `dropout` acts on attention adapters, in training only."""

    targets: Sequence[Target] = ("attention", "router")
    rank: int = 8
    alpha: float = 32
    dropout: float = 0.05
    rslora: bool = False


def add_lora(
    model: AriaForConditionalGeneration, plan: LoraPlan, *, base_name: str, seed: int, revision: str | None = None
) -> PeftModel:
    """Wrap `model` with fresh fp32 adapters; the base stays frozen.

    Args:
        model: Aria, loaded and frozen.
        plan: targets, rank, alpha, dropout.
        base_name: what `base_model_name_or_path` of the saved adapter says.
        revision: of the base on the hub; the saved adapter says it too, so that merging finds the same weights.
        seed: of the random start of the A matrices. B starts at zero.
    """
    # PEFT refuses dropout beside a router adapter for the whole configuration, so the saved one has none and
    # the attention layers get theirs below.
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=0.0,
        use_rslora=plan.rslora,
        target_modules=ATTENTION if "attention" in plan.targets else [],
        target_parameters=[ROUTER] if "router" in plan.targets else None,
        task_type="CAUSAL_LM",
        revision=revision,
    )
    # PEFT takes the name of the adapter's base from the one, and what its card says from the other.
    model.name_or_path = model.config.name_or_path = redact(base_name)
    torch.manual_seed(seed)
    peft_model = get_peft_model(model, config)
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        if parameter.requires_grad != ("lora_" in name):
            raise RuntimeError(f"{name}: requires_grad is {parameter.requires_grad}")
    odd = set(saved_names(peft_model)) ^ expected_keys(model.config.text_config.num_hidden_layers, plan.targets)
    if odd:
        raise RuntimeError(f"PEFT put adapters elsewhere than asked: {min(odd)}")
    if plan.dropout and "attention" in plan.targets:
        set_attention_dropout(peft_model, plan.dropout)
    return peft_model


def set_attention_dropout(model: nn.Module, probability: float) -> None:
    """Give every attention adapter a dropout of its own; the saved configuration knows nothing of it."""
    rows = RowRandomness()
    named = model.named_modules()
    layers = [module for name, module in named if isinstance(module, LoraLayer) and ".self_attn." in name]
    for number, layer in enumerate(layers):
        layer.lora_dropout["default"] = RowDropout(probability, number=number, rows=rows)


def expected_keys(layers: int, targets: Sequence[Target]) -> set[str]:
    """Names of the tensors that an adapter file on these targets has, as PEFT writes them."""
    return {
        f"base_model.model.model.language_model.layers.{layer}."
        f"{'self_attn' if target == 'attention' else 'mlp'}.{module}.lora_{matrix}.weight"
        for layer in range(layers)
        for target in targets
        for module in _PER_LAYER[target]
        for matrix in "AB"
    }


def saved_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Adapter tensors of `model` by the names they have in an adapter file, without copies."""
    return {name.replace(".default", ""): tensor for name, tensor in model.named_parameters() if ".lora_" in name}


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Trainable tensors by their names in the model, without copies."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_adapter(model: AriaForConditionalGeneration, folder: str) -> PeftModel:
    """Wrap `model` with a saved adapter, for use and not for training.

    Raises:
        UserError: the folder holds no adapter, or one that does not fit this model.
    """
    fix = "give the adapter folder of a finished run, and the model it was trained on"
    if (Path(folder) / ADAPTER_FOLDER / CONFIG_NAME).is_file():
        folder = str(Path(folder) / ADAPTER_FOLDER)  # the run's folder was given
    # PEFT would look on the hub for a folder that is absent, and open a pickle where safetensors are.
    if not all((Path(folder) / name).is_file() for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)):
        raise UserError(f"{CONFIG_NAME} or {SAFETENSORS_WEIGHTS_NAME} is not there", where=folder, fix=fix)
    try:
        with safe_open(Path(folder) / SAFETENSORS_WEIGHTS_NAME, "pt") as opened:
            stored = set(opened.keys())
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=False)
    except (SafetensorError, ValueError, TypeError, OSError, RuntimeError, KeyError) as error:
        raise UserError(f"the adapter can't be loaded ({error})", where=folder, fix=fix) from error
    # PEFT passes over tensors that the model has no place for, and only warns of places left empty.
    odd = sorted(stored ^ set(saved_names(adapted)))
    if odd:
        raise UserError(f"the adapter does not fit: {len(odd)} tensor(s) such as {odd[0]}", where=folder, fix=fix)
    return adapted
