"""LoRA on Aria: adapters put where a plan wants them, and what may be saved.

One normal PEFT adapter (arXiv 2106.09685) on linears and bare weights; which they are, model/targets.py says. Knows nothing
of the trainer; that its parameters stay fp32 there is the trainer's care.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AriaForConditionalGeneration

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.errors import UserError
from aria_finetune.model.dora import use_exact_norms
from aria_finetune.model.dropout import RowDropout, RowRandomness
from aria_finetune.model.expert_adapters import expert_layers, put_expert_adapters, speak_of_all, without_experts
from aria_finetune.model.loftq import LOFTQ, keep_first_half
from aria_finetune.model.rope import check_same_theta
from aria_finetune.model.targets import PLACES, Target, linear_pattern, pair_names, parameter_names
from aria_finetune.model.tower import used_layers
from aria_finetune.redaction import redact

PREFIX = "base_model.model."
"""PEFT's own, of every name in an adapter file."""
START = "start"
"""What the header of an adapter file calls how its adapters started, if that is to be known."""
MAGNITUDE = "lora_magnitude_vector"
"""The end of the names that DoRA's magnitudes have there."""


@dataclass(frozen=True)
class LoraPlan:
    """Size and place of the adapters; `dropout` acts in training only, on adapters of linears.

    `layers` are the decoder layers that get any, None all of them.
    """

    targets: Sequence[Target] = ("attention", "router")
    rank: int = 8
    alpha: float = 32
    dropout: float = 0.05
    rslora: bool = False
    dora: bool = False
    layers: Sequence[int] | None = None


def add_lora(
    model: AriaForConditionalGeneration, plan: LoraPlan, *, base_name: str, seed: int, revision: str | None = None
) -> PeftModel:
    """Wrap `model` with fresh fp32 adapters; the base stays frozen.

    Args:
        model: Aria, loaded and frozen.
        plan: targets, rank, alpha, dropout, and of which kind.
        base_name: what `base_model_name_or_path` of the saved adapter says.
        revision: of the base on the hub; the saved adapter says it too, so that merging finds the same weights.
        seed: of the random start of the A matrices. B starts at zero.
    """
    layers = range(model.config.text_config.num_hidden_layers) if plan.layers is None else plan.layers
    tower = used_layers(model.config.vision_config.num_hidden_layers, model.config.vision_feature_layer)
    # PEFT refuses dropout beside adapters of bare parameters for the whole configuration, so the saved one has none and
    # the linears get theirs below.
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=0.0,
        use_rslora=plan.rslora,
        use_dora=plan.dora,
        target_modules=linear_pattern(plan.targets, plan.layers, tower) or [],
        target_parameters=parameter_names(plan.targets, plan.layers) or None,
        task_type="CAUSAL_LM",
        revision=revision,
    )
    # PEFT takes the name of the adapter's base from the one, and what its card says from the other.
    model.name_or_path = model.config.name_or_path = redact(base_name)
    adapted = expert_layers(model, config)
    torch.manual_seed(seed)
    peft_model = get_peft_model(model, without_experts(config))
    put_expert_adapters(model, adapted, config, seed)
    speak_of_all(peft_model, config)
    if plan.dora:
        use_exact_norms(peft_model, fresh=True)
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        if parameter.requires_grad != ("lora_" in name):
            raise RuntimeError(f"{name}: requires_grad is {parameter.requires_grad}")
    odd = set(saved_names(peft_model)) ^ expected_keys(layers, plan.targets, dora=plan.dora, tower=tower)
    if odd:
        raise RuntimeError(f"PEFT put adapters elsewhere than asked: {min(odd)}")
    if plan.dropout:
        set_dropout(peft_model, plan.dropout, [target for target in plan.targets if PLACES[target].dropout])
    return peft_model


def set_dropout(model: nn.Module, probability: float, targets: Sequence[Target]) -> None:
    """Give the adapters of the linears of some targets a dropout of their own; the saved configuration knows nothing of it."""
    rows, pattern = RowRandomness(), linear_pattern(targets)
    named = [(name.removeprefix(PREFIX), module) for name, module in model.named_modules()]
    layers = [
        module
        for name, module in named
        if isinstance(module, LoraLayer) and pattern is not None and re.fullmatch(pattern, name)
    ]
    for number, layer in enumerate(layers):
        layer.lora_dropout["default"] = RowDropout(probability, number=number, rows=rows)


def expected_keys(
    layers: Iterable[int], targets: Iterable[Target], *, dora: bool = False, tower: Iterable[int] = ()
) -> set[str]:
    """Names of the tensors that an adapter file on these targets in these layers of the decoder has, as PEFT writes them.

    `tower` are the layers of the vision tower that have adapters where that is a target.
    """
    parts = ("lora_A.weight", "lora_B.weight", *([MAGNITUDE] if dora else []))
    return {f"{PREFIX}{pair}.{part}" for pair in pair_names(targets, layers, tower) for part in parts}


def saved_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Adapter tensors of `model` by the names they have in an adapter file, without copies."""
    named = ((name.replace(".default", ""), tensor) for name, tensor in model.named_parameters() if ".lora_" in name)
    return {name.replace(f"{MAGNITUDE}.weight", MAGNITUDE): tensor for name, tensor in named}


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Trainable tensors by their names in the model, without copies."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_adapter(model: AriaForConditionalGeneration, folder: str) -> PeftModel:
    """Wrap `model` with a saved adapter, for use and not for training.

    Raises:
        UserError: the folder holds no adapter, or one that does not fit this model or its RoPE base.
    """
    fix = "give the adapter folder of a finished run, and the model it was trained on"
    if (Path(folder) / ADAPTER_FOLDER / CONFIG_NAME).is_file():
        folder = str(Path(folder) / ADAPTER_FOLDER)  # the run's folder was given
    # PEFT would look on the hub for a folder that is absent, and open a pickle where safetensors are.
    if not all((Path(folder) / name).is_file() for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)):
        raise UserError(f"{CONFIG_NAME} or {SAFETENSORS_WEIGHTS_NAME} is not there", where=folder, fix=fix)
    fix += "; one made with transformers up to 5.17 goes through `aria-finetune export` first"
    check_same_theta(Path(folder), model.config.text_config.rope_parameters["rope_theta"])
    try:
        with safe_open(Path(folder) / SAFETENSORS_WEIGHTS_NAME, "pt") as opened:
            stored, start = set(opened.keys()), (opened.metadata() or {}).get(START)
        config = LoraConfig.from_pretrained(folder)
        put_expert_adapters(model, expert_layers(model, config, folder), config)
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=False, config=without_experts(config))
        speak_of_all(adapted, config)
    except (SafetensorError, ValueError, TypeError, OSError, RuntimeError, KeyError) as error:
        raise UserError(f"the adapter can't be loaded ({error})", where=folder, fix=fix) from error
    # PEFT passes over tensors that the model has no place for, and only warns of places left empty.
    odd = sorted(stored ^ set(saved_names(adapted)))
    if odd:
        raise UserError(f"the adapter does not fit: {len(odd)} tensor(s) such as {odd[0]}", where=folder, fix=fix)
    use_exact_norms(adapted, fresh=False)
    if start == LOFTQ:
        keep_first_half(adapted)
    return adapted
