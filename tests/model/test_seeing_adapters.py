"""Adapters of tower and projector: features in the graph from the first of them on, and gradients of plain transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AriaForConditionalGeneration

from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora, expected_keys, saved_names
from aria_finetune.model.targets import Target, linear_pattern
from aria_finetune.model.tower import encode
from aria_finetune.model.vision import as_encoder_outputs, image_features, normalise

Fill = Callable[..., PeftModel]
IMAGE, TOKENS = 9, 128
SIZES = ((490, 490), (300, 490), (490, 200))
TARGETS: list[tuple[Target, ...]] = [("projector",), ("vision",), ("attention", "projector", "vision")]


def tiles() -> dict[str, torch.Tensor]:
    """What the collator makes of three pictures, two of them with padding."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(3, 3, 490, 490, dtype=torch.uint8)
    for tile, (height, width) in zip(pixels, SIZES, strict=True):
        tile[:, :height, :width] = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"pixels_490": pixels, "extents_490": torch.tensor(SIZES), "tile_order": torch.tensor([1, 0, 2])}


def row() -> dict[str, torch.Tensor]:
    """A text with three pictures, and which of its tokens are learned."""
    text = torch.randint(10, 700, (20,), generator=torch.Generator().manual_seed(1))
    picture = torch.full((TOKENS,), IMAGE)
    ids = torch.cat([text[:4], picture, text[4:8], picture, text[8:12], picture, text[12:]])[None]
    return {"input_ids": ids, "labels": torch.where(ids == IMAGE, -100, ids)}


def adapted(
    folder: Path, targets: Sequence[Target], fill: Fill, *, experts: Experts = "fp32", dora: bool = False
) -> PeftModel:
    dtype = torch.float32 if experts == "fp32" else torch.bfloat16
    base = load_model(str(folder), experts=experts, dtype=dtype).model
    plan = LoraPlan(targets, rank=4, alpha=8, dropout=0.2 if targets == ("projector",) else 0, dora=dora)
    return fill(add_lora(base, plan, base_name=str(folder), seed=0), deviation=0.1)


def ours(model: PeftModel) -> torch.Tensor:
    """The loss as the trainer computes it."""
    features = image_features(model.get_base_model(), tiles())
    assert features is not None
    return model(**row(), mm_encoder_outputs=as_encoder_outputs(features), use_cache=False).loss


def by_plain_peft(
    folder: Path, targets: Sequence[Target], state: dict[str, torch.Tensor], *, dora: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of transformers and PEFT alone, from pixels with padding, with the adapters of another model."""
    base = AriaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=linear_pattern(targets), use_dora=dora)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = state[name].detach().clone()
    made, mask = tiles(), torch.zeros(3, 490, 490, dtype=torch.bool)
    order = made["tile_order"]
    for tile, (height, width) in zip(mask, made["extents_490"].tolist(), strict=True):
        tile[:height, :width] = True
    pixels = normalise(made["pixels_490"], torch.float32)
    loss = model(**row(), pixel_values=pixels[order], pixel_mask=mask[order], use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_loss_and_gradients_are_those_of_plain_transformers_and_peft(
    fp32_folder: Path, pretend_trained: Fill, targets: tuple[Target, ...], dora: bool, checkpointing: bool
) -> None:
    model = adapted(fp32_folder, targets, pretend_trained, dora=dora).train()
    base = model.get_base_model()
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    loss = ours(model)
    loss.backward()
    due, gradients = by_plain_peft(fp32_folder, targets, adapter_state(model), dora=dora)
    assert loss.item() == pytest.approx(due, rel=1e-6)
    assert gradients.keys() == adapter_state(model).keys()
    for name, parameter in adapter_state(model).items():
        assert gradients[name].abs().max() > 0, name
        scale = float(gradients[name].abs().max())
        assert (parameter.grad - gradients[name]).abs().max() < 2e-5 * scale + 1e-9, name


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_are_where_they_are_expected(
    tiny_folder: Path, pretend_trained: Fill, targets: tuple[Target, ...]
) -> None:
    model = adapted(tiny_folder, targets, pretend_trained, experts="nf4")
    names = set(saved_names(model))
    assert names == expected_keys(range(2), targets, tower=range(2))
    counts = {"projector": 6, "vision": 2 * 6, "attention": 2 * 4}
    assert len(names) == 2 * sum(counts[target] for target in targets)
    assert {parameter.dtype for parameter in adapter_state(model).values()} == {torch.float32}


def test_decoder_layers_that_are_chosen_leave_tower_and_projector_as_they_are(tiny_folder: Path) -> None:
    base = load_model(str(tiny_folder), experts="bf16").model
    model = add_lora(base, LoraPlan(TARGETS[2], rank=2, layers=(1,)), base_name="tiny", seed=0)
    names = set(saved_names(model))
    assert names == expected_keys((1,), TARGETS[2], tower=range(2))
    assert len(names) == 2 * (4 + 6 + 12)


def test_with_the_projector_alone_the_tower_has_no_gradient(fp32_folder: Path, pretend_trained: Fill) -> None:
    model = adapted(fp32_folder, ("projector",), pretend_trained).train()
    seen: list[bool] = []

    def watch(_: nn.Module, __: object, output: torch.Tensor) -> None:
        seen.append(output.requires_grad)

    aria = model.get_base_model()
    aria.enable_input_require_grads()
    handle = aria.model.vision_tower.encoder.layers[1].self_attn.out_proj.register_forward_hook(watch)
    features = image_features(aria, tiles())
    handle.remove()
    assert features is not None
    assert features.requires_grad
    assert seen == [False] * 3


def test_checkpointed_layers_are_computed_twice_and_keep_their_inputs_alone(
    fp32_folder: Path, pretend_trained: Fill
) -> None:
    model = adapted(fp32_folder, ("vision",), pretend_trained).train()
    aria, kept, calls = model.get_base_model(), {}, {}
    for checkpointing in (False, True):
        if checkpointing:
            aria.gradient_checkpointing_enable({"use_reentrant": False})
        sizes: list[int] = []
        names: list[str] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        linear = aria.model.vision_tower.encoder.layers[1].self_attn.out_proj
        handle = linear.register_forward_hook(lambda *_, names=names: names.append("called"))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = image_features(aria, tiles())
        kept[checkpointing] = sum(sizes)
        assert features is not None
        features.sum().backward()
        handle.remove()
        calls[checkpointing] = len(names)
    assert calls == {False: 3, True: 6}, "of three tiles"
    assert kept[True] < 0.2 * kept[False]


@pytest.mark.parametrize("dora", [False, True])
def test_computed_in_16_bit_as_on_a_gpu_gradients_are_near_those_in_32(
    tiny_folder: Path, pretend_trained: Fill, dora: bool
) -> None:
    model = adapted(tiny_folder, ("projector", "vision"), pretend_trained, experts="bf16", dora=dora).train()
    aria = model.get_base_model().model
    pixels = normalise(tiles()["pixels_490"][:1], torch.float32)
    upstream = torch.randn(1, TOKENS, 64, generator=torch.Generator().manual_seed(2))
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        features = encode(aria, pixels.to(dtype), TOKENS)
        assert features.dtype == dtype
        features.backward(upstream.to(dtype))
        gradients.append({name: p.grad.clone() for name, p in adapter_state(model).items()})
    exact, rounded = gradients
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        cosine = torch.cosine_similarity(rounded[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.95, name


@pytest.mark.parametrize("targets", TARGETS)
def test_in_evaluation_and_for_a_loaded_adapter_nothing_is_in_the_graph(
    fp32_folder: Path, pretend_trained: Fill, targets: tuple[Target, ...]
) -> None:
    model = adapted(fp32_folder, targets, pretend_trained).eval()
    aria = model.get_base_model()
    trained = image_features(aria, tiles())
    with torch.no_grad():
        evaluated = image_features(aria, tiles())
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=False)
    loaded = image_features(aria, tiles())
    assert trained is not None
    assert evaluated is not None
    assert loaded is not None
    assert trained.requires_grad
    assert not evaluated.requires_grad
    assert not loaded.requires_grad
    assert torch.equal(evaluated, loaded)
    assert (trained - evaluated).abs().max() <= 1e-5 * evaluated.abs().max()
    with model.disable_adapter(), torch.no_grad():
        without: Any = image_features(aria, tiles())
    assert (without - evaluated).abs().max() > 1e-3 * evaluated.abs().max(), "the adapter does nothing"


def test_in_16_bit_gradients_are_near_those_in_32(tiny_folder: Path, fp32_folder: Path, pretend_trained: Fill) -> None:
    """Of the same weights; tower and projector are computed in fp32 on a CPU without AMX, the decoder in bf16."""
    exact = adapted(fp32_folder, TARGETS[2], pretend_trained).train()
    rounded = adapted(tiny_folder, TARGETS[2], pretend_trained, experts="bf16").train()
    ours(exact).backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(rounded)
    loss.backward()
    state = adapter_state(exact)
    for name, parameter in adapter_state(rounded).items():
        due = state[name].grad
        assert parameter.grad.dtype == torch.float32
        cosine = torch.cosine_similarity(parameter.grad.flatten(), due.flatten(), dim=0)
        assert cosine > 0.9, name
