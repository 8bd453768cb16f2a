"""Experts in NF4: the bytes bitsandbytes would write, the values NF4 stands for, and gradients that stay right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from bitsandbytes.nn.modules import has_avx512bf16
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from peft import PeftModel
from torch import nn
from transformers import AriaForConditionalGeneration, BitsAndBytesConfig
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.errors import UserError
from aria_finetune.model.loading import ROUTER_KEY, load_model, own_kernels
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.model.nf4 import (
    EXPERT_TENSORS,
    AriaNF4Config,
    PackedRows,
    Packer,
    expert_state,
    quantize_experts,
    quantize_linear,
    unquantised_experts,
)
from aria_finetune.model.packed_linear import install_packed_linears
from aria_finetune.model.router import install_float32_routers
from aria_finetune.tiny.architecture import tiny_config

# The last two are the real model's widths, with two of its 64 experts. In the third no nested block of 256
# scales ends where an expert does.
SHAPES = [(4, 64, 128), (64, 64, 64), (5, 64, 64), (3, 8, 24), (2, 2560, 3328), (2, 1664, 2560)]
WIDEST_GAP = 0.31
"""Between neighbouring values of NF4 (-1 and -0.696), rounded up."""


def random_experts(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Weights whose blocks have scales from 0.001 to 1, with a block of zeros."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(shape, generator=generator).flatten()
    scales = torch.logspace(-3, 0, len(weights) // 64)[torch.randperm(len(weights) // 64, generator=generator)]
    scales[1] = 0
    return (weights.view(-1, 64) * scales[:, None]).view(shape).to(dtype)


def state_tensors(state: QuantState) -> dict[str, torch.Tensor]:
    return {
        "absmax": state.absmax,
        "code": state.code,
        "offset": state.offset,
        "nested absmax": state.state2.absmax,
        "nested code": state.state2.code,
    }


def assert_same_state(ours: QuantState, theirs: QuantState) -> None:
    others = state_tensors(theirs)
    for name, tensor in state_tensors(ours).items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name
    assert (ours.shape, ours.dtype, ours.blocksize, ours.quant_type, ours.nested) == (
        theirs.shape,
        theirs.dtype,
        theirs.blocksize,
        theirs.quant_type,
        theirs.nested,
    )
    assert (ours.state2.blocksize, ours.state2.dtype) == (theirs.state2.blocksize, theirs.state2.dtype)


def nf4_values() -> np.ndarray:
    """The 16 values of NF4 by their definition: quantiles of a normal distribution, zero exact, scaled to 1."""
    quantile, outermost = NormalDist().inv_cdf, 0.9677083
    above = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    values = np.array(sorted([*below, 0.0, *above]))
    return values / values.max()


def decode(packed: torch.Tensor, state: QuantState) -> tuple[np.ndarray, np.ndarray]:
    """Values (weights,) and scales (blocks,) in fp64, by the format: high half of a byte first, scales nested."""
    data = packed.numpy().reshape(-1)
    halves = np.stack([data >> 4, data & 15], axis=1).reshape(-1)
    levels = state.state2.code.numpy().astype(np.float64)[state.absmax.numpy()]
    nested = np.repeat(state.state2.absmax.numpy().astype(np.float64), 256)[: len(levels)]
    scales = levels * nested + float(state.offset)
    return nf4_values()[halves] * np.repeat(scales, 64), scales


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_one_by_one_are_the_whole_stack_at_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weights = random_experts(shape, dtype)
    packed, state = quantize_experts(weights)
    whole, whole_state = quantize_4bit(weights, compress_statistics=True, quant_type="nf4")
    assert packed.dtype == torch.uint8
    assert torch.equal(packed, whole)
    assert_same_state(state, whole_state)
    values = dequantize_4bit(packed, state)
    assert values.shape == shape
    assert values.dtype == dtype
    assert torch.equal(values, dequantize_4bit(whole, whole_state))


@pytest.mark.parametrize("shape", [(4, 64, 128), (5, 64, 64), (2, 1664, 2560)])
def test_the_values_are_those_of_the_format(shape: tuple[int, ...]) -> None:
    weights = random_experts(shape, torch.float32)
    packed, state = quantize_experts(weights)
    reference, scales = decode(packed, state)
    given = dequantize_4bit(packed, state).numpy().astype(np.float64).reshape(-1)
    # fp32 arithmetic, and a table that bitsandbytes holds to seven digits
    assert np.abs(given - reference).max() <= 1e-6 * np.abs(scales).max()

    exact = weights.numpy().astype(np.float64).reshape(-1, 64)
    largest = np.abs(exact).max(axis=1)
    # A weight is off by half a gap of its block's largest, and by the error of the 8-bit scale.
    bound = (WIDEST_GAP / 2) * largest + np.abs(scales - largest) + 1e-7
    assert (np.abs(reference.reshape(-1, 64) - exact) <= bound[:, None]).all()
    # 8 bit hold a scale's distance from their mean; two neighbours are at most 1.5% of the largest apart.
    assert np.abs(scales - largest).max() <= 0.01 * np.abs(largest - float(state.offset)).max()


def test_every_weight_gets_the_nearest_value() -> None:
    weights = random_experts((4, 64, 128), torch.float32)
    packed, _ = quantize_experts(weights)
    data = packed.numpy().reshape(-1)
    chosen = np.stack([data >> 4, data & 15], axis=1).reshape(-1, 64)
    blocks = weights.numpy().astype(np.float64).reshape(-1, 64)
    scaled = blocks / np.maximum(np.abs(blocks).max(axis=1, keepdims=True), 1e-30)
    distances = np.abs(scaled[:, :, None] - nf4_values())
    taken = np.take_along_axis(distances, chosen[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    assert (taken <= distances.min(axis=2) + 1e-6).all()


def test_an_expert_that_does_not_divide_into_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 64"):
        quantize_experts(torch.zeros(2, 10, 10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_packed_some_at_a_time_are_the_whole_at_once(dtype: torch.dtype) -> None:
    weights = random_experts((300, 128), dtype)
    packer = Packer(weights.shape, dtype, "cpu")
    for start in (0, 70, 140, 210, 280):
        packer.add(start, weights[start : start + 70])
    packed, state = packer.finish()
    whole, whole_state = quantize_linear(weights)
    assert torch.equal(packed, whole)
    assert_same_state(state, whole_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_dequantised_to_the_bits_of_the_whole(dtype: torch.dtype) -> None:
    """300 rows of 3 blocks: no nested block of 256 scales ends where a row does."""
    packed, state = quantize_linear(random_experts((300, 192), dtype))
    rows, whole = PackedRows(packed, state), dequantize_4bit(packed, state)
    assert len(rows) == 300
    for index in (slice(0, 100), slice(299, 400), torch.tensor([7, 299, 7, 0]), torch.tensor([], dtype=torch.int64)):
        assert rows[index].dtype == dtype
        assert torch.equal(rows[index], whole[index])
    with pytest.raises(ValueError, match="a row of 96 weights does not divide"):
        PackedRows(*quantize_linear(torch.ones(4, 96)))


def reference_model(folder: Path, dtype: torch.dtype) -> AriaForConditionalGeneration:
    """Stock 4-bit linears, and bitsandbytes' own replacement of the dense expert tensors after a dense load; our attention."""
    skipped = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )
    model = AriaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, quantization_config=config, attn_implementation=own_kernels()["attn_implementation"]
    )
    for layer in model.model.language_model.layers:
        for name in EXPERT_TENSORS:
            replace_parameter_4bit(layer.mlp.experts, name, compress_statistics=True, quant_type="nf4")
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.0), (torch.float32, 1e-5)])
def test_a_loaded_model_is_the_one_quantised_after_loading(
    tiny_folder: Path, fp32_folder: Path, ids: torch.Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    folder = tiny_folder if dtype == torch.bfloat16 else fp32_folder
    loaded = load_model(str(folder), experts="nf4", dtype=dtype)
    reference = reference_model(folder, dtype)
    for ours, theirs in zip(expert_modules(loaded.model), expert_modules(reference), strict=True):
        for name in EXPERT_TENSORS:
            (packed, state), (whole, whole_state) = found(ours, name), found(theirs, name)
            assert torch.equal(packed, whole)
            assert_same_state(state, whole_state)
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
    install_float32_routers(reference, lambda layer: loaded.checkpoint.read(ROUTER_KEY.format(layer=layer)))
    if dtype == torch.bfloat16:  # where products rounded in another way would send tokens to other experts
        install_packed_linears(reference)
    with torch.no_grad():
        logits, expected = loaded.model(input_ids=ids).logits, reference(input_ids=ids).logits
    assert (logits - expected).abs().max().item() <= tolerance
    assert expected.std() > 0.1


def expert_modules(model: nn.Module) -> list[AriaExperts]:
    return [module for module in model.modules() if isinstance(module, AriaExperts)]


def found(experts: AriaExperts, name: str) -> tuple[torch.Tensor, QuantState]:
    state = expert_state(experts, name)
    assert state is not None
    return state


def test_what_is_4_bit_and_what_is_not(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder)).model
    packed = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    layers = range(model.config.text_config.num_hidden_layers)
    assert packed == {
        f"model.language_model.layers.{layer}.{name}"
        for layer in layers
        for name in (
            *(f"self_attn.{side}_proj" for side in "qkvo"),
            *(f"mlp.shared_experts.{side}_proj" for side in ("gate", "up", "down")),
        )
    }
    assert unquantised_experts(model) == []
    dense = {name: parameter for name, parameter in model.named_parameters() if parameter.dtype != torch.uint8}
    for part in ("vision_tower", "multi_modal_projector", "embed_tokens", "lm_head"):
        assert {dense[name].dtype for name in dense if part in name} == {torch.bfloat16}
    assert not any(isinstance(module, Linear4bit) and module.support_avx512bf16_for_cpu for module in model.modules())


def test_the_configuration_survives_being_written() -> None:
    written = AriaNF4Config().to_dict()
    assert written["quant_method"] == "aria_nf4"
    assert written["bnb_4bit_use_double_quant"] is True
    assert not {key for key in written if "load_in" in key}, "transformers' own quantiser would claim the model"
    assert AriaNF4Config().to_diff_dict() == written


def test_transformers_own_loading_is_refused(tiny_folder: Path) -> None:
    """It would leave the experts in 16 bit without a word."""
    with pytest.raises(UserError, match="transformers can't load Aria's experts in NF4"):
        AriaForConditionalGeneration.from_pretrained(tiny_folder, quantization_config=AriaNF4Config())


def gradients(
    folder: Path, fill: Callable[..., PeftModel], ids: torch.Tensor, *, evaluate_first: bool, stock: bool = False
) -> dict[str, torch.Tensor]:
    """Of every adapter tensor, in one training step, with or without an evaluation before it; `stock` as bitsandbytes does."""
    model = load_model(str(folder)).model
    for module in model.modules():
        if isinstance(module, Linear4bit) and stock:
            module.__class__ = Linear4bit
            module.support_avx512bf16_for_cpu = True
    adapted = fill(add_lora(model, LoraPlan(dropout=0.0), base_name="tiny", seed=0))
    if evaluate_first:
        with torch.no_grad():
            adapted.eval()(input_ids=ids)
    adapted.train()(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def test_evaluating_first_does_not_change_a_training_step(
    tiny_folder: Path, pretend_trained: Callable[..., PeftModel], ids: torch.Tensor
) -> None:
    alone = gradients(tiny_folder, pretend_trained, ids, evaluate_first=False)
    after = gradients(tiny_folder, pretend_trained, ids, evaluate_first=True)
    assert len(alone) == 2 * 5 * 2
    assert all(gradient.abs().max() > 0 for gradient in alone.values())
    assert all(torch.equal(alone[name], after[name]) for name in alone)


@pytest.mark.skipif(not has_avx512bf16(), reason="this processor has no AVX512-BF16, so bitsandbytes never repacks")
def test_bitsandbytes_still_needs_to_be_kept_from_repacking(
    tiny_folder: Path, pretend_trained: Callable[..., PeftModel], ids: torch.Tensor
) -> None:
    """Where this fails, bitsandbytes is mended and `support_avx512bf16_for_cpu = False` can go."""
    alone = gradients(tiny_folder, pretend_trained, ids, evaluate_first=False, stock=True)
    wrong = gradients(tiny_folder, pretend_trained, ids, evaluate_first=True, stock=True)
    assert any((alone[name] - wrong[name]).norm() > 0.1 * alone[name].norm() for name in alone)


def test_experts_that_are_not_nf4_are_named() -> None:
    def experts(**kept: dict[str, Any] | None) -> AriaExperts:
        module = AriaExperts(tiny_config().text_config).requires_grad_(requires_grad=False)
        for name in EXPERT_TENSORS:
            options = kept.get(name, {"compress_statistics": True, "quant_type": "nf4"})
            if options is not None:
                nn.init.normal_(getattr(module, name))
                replace_parameter_4bit(module, name, **options)
        return module

    once, fp4 = {"compress_statistics": False}, {"compress_statistics": True, "quant_type": "fp4"}
    model = nn.ModuleDict(
        {"a": experts(), "b": experts(down_proj=None), "c": experts(gate_up_proj=once, down_proj=fp4)}
    )
    assert unquantised_experts(model) == ["b.down_proj", "c.gate_up_proj", "c.down_proj"]


def test_loading_fails_when_an_expert_stays_dense(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a release of transformers had another name for one tensor."""
    monkeypatch.setattr("aria_finetune.model.filling.EXPERT_TENSORS", ("down_proj",))
    dense = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    with pytest.raises(UserError, match=f"2 routed-expert.* not NF4 .*{dense}"):
        load_model(str(tiny_folder))
