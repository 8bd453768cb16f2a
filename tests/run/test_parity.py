"""Our losses are those of plain TRL, our NF4 is the stock NF4, and nothing but adapters moves.

The references are built here from transformers, peft, trl and bitsandbytes alone, on pixels from transformers'
own image processor; they share with us only the token ids, the labels and the starting values of the adapters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from rich.console import Console
from transformers import AriaForConditionalGeneration, BitsAndBytesConfig
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil
from trl import SFTTrainer

from aria_finetune.data.dataset import EpochOrder
from aria_finetune.data.rows import RowPlan
from aria_finetune.material import Material, build_collator, prepare
from aria_finetune.media.videos import VideoLimits, read_frames
from aria_finetune.model.lora import adapter_state, expected_keys
from aria_finetune.progress import ProgressReport
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import open_run_folder
from aria_finetune.tiny import CHECKPOINT
from aria_finetune.trainer import AriaTrainer
from aria_finetune.training import build_arguments, build_model, build_trainer

Losses = list[float]


@pytest.fixture
def start(tmp_path: Path) -> Callable[[Recipe], tuple[AriaTrainer, Material]]:
    """Our trainer for a recipe, ready to train."""

    def make(recipe: Recipe) -> tuple[AriaTrainer, Material]:
        with open_run_folder(recipe.output_dir, overwrite=False) as run:
            material = prepare(recipe, tmp_path / "store")
            model, _ = build_model(recipe, run, material)
            run.began = True
            return build_trainer(recipe, run, material, model, ProgressReport(run, Console(quiet=True))), material

    return make


@pytest.mark.parametrize(
    ("experts", "reference"), [("fp32", "plain_model"), ("nf4", "stock_nf4_model")], ids=["fp32", "nf4"]
)
def test_losses_equal_the_reference_within_1e_5(
    experts: str,
    reference: str,
    make_recipe: Callable[..., Recipe],
    start: Callable[[Recipe], tuple[AriaTrainer, Material]],
) -> None:
    recipe = make_recipe(f"model.experts={experts}", "model.dtype=float32")
    trainer, material = start(recipe)
    adapters = {name: value.detach().clone() for name, value in adapter_state(trainer.model).items()}

    plain = globals()[reference]()
    plain.load_state_dict(adapters, strict=False)
    expected = reference_losses(plain, recipe, material)

    trainer.train()
    ours = losses(trainer)
    assert len(ours) == 10
    assert max(abs(a - b) for a, b in zip(ours, expected, strict=True)) < 1e-5
    assert ours[0] != ours[-1]


def plain_model() -> PeftModel:
    """Aria in fp32 under PEFT, as its documentation would have it."""
    return with_adapters(AriaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32))


def stock_nf4_model() -> PeftModel:
    """The stock 4-bit path: transformers' own for linears, bitsandbytes' parametrisation for the experts."""
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "model.vision_tower", "model.multi_modal_projector"],
    )
    model = AriaForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32, quantization_config=quantisation
    )
    for layer in model.model.language_model.layers:
        for name in ("gate_up_proj", "down_proj"):
            replace_parameter_4bit(layer.mlp.experts, name, compress_statistics=True, quant_type="nf4")
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return with_adapters(model)


def with_adapters(model: AriaForConditionalGeneration) -> PeftModel:
    attention = r"model\.language_model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)"
    config = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=0.0, target_modules=attention, target_parameters=["mlp.router.weight"]
    )
    return get_peft_model(model, config)


class ReferenceTrainer(SFTTrainer):
    """TRL's trainer as it is; adapters of a 4-bit model back to fp32, which TRL rounds to bf16."""

    def __init__(self, model: PeftModel, **kwargs: Any) -> None:
        kept = {name: p.data.clone() for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(model, **kwargs)
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data = kept[name]


def reference_losses(model: PeftModel, recipe: Recipe, material: Material) -> Losses:
    """Losses of TRL on the rows of `material` in our order, pixels by transformers' image processor."""
    order = EpochOrder(material.train_rows.spans, material.train_rows.weights, recipe.train.seed)
    assert len(order) == 20, "five whole steps an epoch, so that two epochs are ten steps"
    rows: list[int] = []
    for epoch in range(2):
        order.set_epoch(epoch)
        rows += list(order)
    collator = build_collator(recipe, material)
    processor = AriaImageProcessorPil(max_image_size=490)

    def collate(features: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        ours = collator(features)
        batch = {name: ours[name] for name in ("input_ids", "attention_mask", "labels")}
        pictures = [p for feature in features for p in pictures_of(material.plans[feature["row"]])]
        if pictures:
            pixels = processor(pictures, max_image_size=490, return_tensors="pt")
            batch |= {"pixel_values": pixels["pixel_values"], "pixel_mask": pixels["pixel_mask"]}
        return batch

    with open_run_folder(recipe.output_dir.with_name("reference"), overwrite=False) as run:
        arguments = build_arguments(recipe, run)
    arguments.train_sampling_strategy = "sequential"
    trainer = ReferenceTrainer(
        model,
        args=arguments,
        data_collator=collate,
        train_dataset=Dataset.from_dict({"row": rows}),
        processing_class=material.processor,
    )
    trainer.train()
    return losses(trainer)


def pictures_of(plan: RowPlan) -> list[Image.Image]:
    """Images by plain PIL; frames of the bundled clip by the times of the plan."""
    pictures = []
    for sight in plan.sights:
        path = Path(plan.record.media[sight.media].path or "")
        if sight.time is None:
            pictures.append(Image.open(path).convert("RGB"))
        else:
            pictures += read_frames(path, [sight.time], VideoLimits())
    return pictures


def losses(trainer: SFTTrainer) -> Losses:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_only_adapters_change_and_all_of_them_do(
    make_recipe: Callable[..., Recipe], start: Callable[[Recipe], tuple[AriaTrainer, Material]]
) -> None:
    trainer, _ = start(make_recipe("train.max_steps=20", "lora.dropout=0.05"))
    before_others, before_adapters = fingerprints(trainer.model), copies(trainer.model)
    trainer.train()
    assert fingerprints(trainer.model) == before_others
    after = copies(trainer.model)
    names = {name.replace(".default", "") for name in after}
    assert names == expected_keys(range(2), ("attention", "router"))
    assert len(names) == 2 * 5 * 2
    for name, value in after.items():
        assert torch.isfinite(value).all(), name
        assert value.dtype == torch.float32, name
        assert not torch.equal(value, before_adapters[name]), name


def fingerprints(model: PeftModel) -> dict[str, str]:
    """SHA-256 of every tensor that is not an adapter, quantisation states included."""
    tensors = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    tensors |= dict(model.named_buffers())
    for name, module in model.named_modules():
        for state in vars(module).values():
            if isinstance(state, bnb.functional.QuantState):
                tensors |= {f"{name}.absmax": state.absmax, f"{name}.nested": state.state2.absmax}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors |= {f"{name}.absmax": state.absmax, f"{name}.nested": state.state2.absmax}
    return {
        name: hashlib.sha256(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in tensors.items()
    }


def copies(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in adapter_state(model).items()}


def test_gradients_are_equal_with_and_without_checkpointing(
    make_recipe: Callable[..., Recipe], start: Callable[[Recipe], tuple[AriaTrainer, Material]]
) -> None:
    gradients = []
    for checkpointing in ("true", "false"):
        recipe = make_recipe(
            f"train.gradient_checkpointing={checkpointing}",
            "model.experts=fp32",
            "train.max_steps=3",
            "train.max_grad_norm=0",
            "train.warmup_ratio=0",
            name=f"checkpointing-{checkpointing}",
        )
        trainer, _ = start(recipe)
        gradients.append(gradients_by_step(trainer))
    with_it, without = gradients
    assert len(with_it) == len(without) == 3
    for step in (1, 2):  # B starts at zero, so in the first step A has no gradient to compare
        assert with_it[step].keys() == without[step].keys()
        for name, gradient in with_it[step].items():
            assert gradient.abs().max() > 0, name
            assert (gradient - without[step][name]).abs().max() < 1e-6, name


def gradients_by_step(trainer: AriaTrainer) -> list[dict[str, torch.Tensor]]:
    """Gradients that each optimiser step saw."""
    seen: list[dict[str, torch.Tensor]] = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append({n: p.grad.detach().clone() for n, p in adapter_state(trainer.model).items()})
    )
    trainer.train()
    return seen
