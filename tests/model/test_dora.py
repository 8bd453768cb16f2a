"""DoRA is what its paper says, in fp32 whatever the model computes in: an adapter that has learned nothing changes no bit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from safetensors.torch import load_file
from torch import nn
from transformers import AriaForConditionalGeneration

from aria_finetune.model.dora import Magnitude, row_norms
from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora, expected_keys, load_adapter, saved_names
from aria_finetune.model.nf4 import put_linear, quantize_linear
from aria_finetune.model.packed_linear import install_packed_linears
from aria_finetune.model.targets import Target, linear_pattern

Fill = Callable[..., PeftModel]
BOTH: tuple[Target, ...] = ("attention", "shared_experts")
OUT, IN, RANK, SCALING = 40, 128, 4, 2.0


def adapted(folder: Path, experts: Experts, *, dora: bool = True, dropout: float = 0.0) -> PeftModel:
    dtype = torch.float32 if experts == "fp32" else torch.bfloat16
    base = load_model(str(folder), experts=experts, dtype=dtype).model
    plan = LoraPlan(BOTH, rank=RANK, alpha=8, dropout=dropout, dora=dora)
    return add_lora(base, plan, base_name="rhymes-ai/Aria", seed=0)


def computing(experts: Experts) -> contextlib.AbstractContextManager[object]:
    """As a run computes."""
    return torch.autocast("cpu", torch.bfloat16) if experts != "fp32" else contextlib.nullcontext()


def logits(model: nn.Module, ids: torch.Tensor, experts: Experts = "fp32") -> torch.Tensor:
    with torch.no_grad(), computing(experts):
        return model.eval()(input_ids=ids).logits.float()


@pytest.mark.parametrize("experts", ["fp32", "bf16", "nf4"])
def test_a_fresh_adapter_changes_no_bit(tiny_folder: Path, ids: torch.Tensor, experts: Experts) -> None:
    """Of what fresh LoRA says, which in NF4 are other last digits than without: shared experts with adapters have no kernel."""
    plain = logits(adapted(tiny_folder, experts, dora=False), ids, experts)
    assert torch.equal(logits(adapted(tiny_folder, experts), ids, experts), plain)


@pytest.mark.parametrize("experts", ["bf16", "nf4"])
def test_pefts_own_norms_are_still_rounded(tiny_folder: Path, ids: torch.Tensor, experts: Experts) -> None:
    """When this fails, `Magnitude` is needed no more."""
    base = load_model(str(tiny_folder), experts=experts).model
    plain = logits(base, ids, experts)
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=linear_pattern(BOTH), use_dora=True)
    assert (logits(get_peft_model(base, config), ids, experts) - plain).abs().max() > 0.05


class Linear:
    """A linear in one of the forms that adapters meet, and its weight in fp64."""

    def __init__(self, form: str) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = 0.05 * torch.randn(OUT, IN, generator=generator)
        self.bias = torch.randn(OUT, generator=generator) if form == "biased" else None
        holder = nn.Sequential(nn.Linear(IN, OUT, bias=self.bias is not None)).requires_grad_(requires_grad=False)
        if form == "packed":
            holder = nn.Sequential(
                bnb.nn.Linear4bit(IN, OUT, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            )
            packed, state = quantize_linear(weight)
            put_linear(holder[0], packed, state)
            install_packed_linears(holder)
            weight = dequantize_4bit(packed, state)
        else:
            holder[0].weight.data = weight
            if self.bias is not None:
                holder[0].bias.data = self.bias
        self.module: nn.Module = holder[0]
        self.weight = weight.double()


@pytest.mark.parametrize("form", ["dense", "biased", "packed"])
@pytest.mark.parametrize("dropped", [False, True])
def test_output_and_gradients_are_those_of_the_paper_in_fp64(form: str, dropped: bool) -> None:
    """Equation 5 with the norm as a constant; with dropout, the output without and what DoRA adds of the input with it."""
    linear, generator = Linear(form), torch.Generator().manual_seed(1)
    a, b = (torch.randn(shape, generator=generator) * 0.1 for shape in ((RANK, IN), (OUT, RANK)))
    magnitude = Magnitude(linear.weight.norm(dim=1) * (1 + 0.1 * torch.randn(OUT, generator=generator)), trained=True)
    lora_A, lora_B = nn.Linear(IN, RANK, bias=False), nn.Linear(RANK, OUT, bias=False)
    lora_A.weight.data, lora_B.weight.data = a, b
    x = torch.randn(2, 9, IN, generator=generator)
    seen = x * (torch.rand(x.shape, generator=generator) > 0.3) if dropped else x
    upstream = torch.randn(2, 9, OUT, generator=generator)

    output = linear.module(x)
    inputs = {"lora_A": lora_A, "lora_B": lora_B, "scaling": SCALING, "base_layer": linear.module}
    output = output + magnitude(seen, **inputs, base_result=None if dropped else output)
    output.backward(upstream)

    exact = [value.detach().double().requires_grad_() for value in (a, b, magnitude.weight)]
    a64, b64, m64 = exact
    norm = (linear.weight + SCALING * b64 @ a64).norm(dim=1).detach()
    bias = 0 if linear.bias is None else linear.bias.double()
    due = x.double() @ linear.weight.T + bias
    due = (
        due
        + (m64 / norm - 1) * (seen.double() @ linear.weight.T)
        + m64 / norm * SCALING * (seen.double() @ a64.T @ b64.T)
    )
    due.backward(upstream.double())
    assert (output - due).abs().max() < 2e-6 * due.abs().max()
    for ours, theirs in zip((lora_A.weight, lora_B.weight, magnitude.weight), exact, strict=True):
        assert theirs.grad.abs().max() > 0.1
        assert (ours.grad - theirs.grad).abs().max() < 2e-6 * theirs.grad.abs().max()


@pytest.mark.parametrize("pieces", [1, 3])
def test_norms_are_those_of_what_is_multiplied_by(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aria_finetune.model.dora.PIECE_WEIGHTS", IN * -(-OUT // pieces))
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(RANK, IN, generator=generator), torch.randn(OUT, RANK, generator=generator)
    for form in ("dense", "packed"):
        linear = Linear(form)
        due = (linear.weight + 0.3 * b.double() @ a.double()).norm(dim=1)
        with torch.autocast("cpu", torch.bfloat16):
            found = row_norms(linear.module, a, b, 0.3)
        assert found.dtype == torch.float32
        assert (found - due).abs().max() < 1e-6 * due.max()


def test_a_row_of_zeros_stays_one() -> None:
    linear = nn.Linear(IN, OUT, bias=False).requires_grad_(requires_grad=False)
    linear.weight[3] = 0
    lora_A, lora_B = nn.Linear(IN, RANK, bias=False), nn.Linear(RANK, OUT, bias=False)
    nn.init.zeros_(lora_B.weight)
    norms = row_norms(linear, lora_A.weight, lora_B.weight, SCALING)
    magnitude = Magnitude(norms, trained=True)
    x = torch.randn(5, IN)
    added = magnitude(x, lora_A=lora_A, lora_B=lora_B, scaling=SCALING, base_layer=linear, base_result=linear(x))
    assert not added.any()


def by_plain_peft(
    folder: Path, ids: torch.Tensor, state: dict[str, torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of transformers and PEFT alone, with the adapters of another model."""
    base = AriaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=linear_pattern(BOTH), use_dora=True)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = state[name].detach().clone()
    assert not any(isinstance(module, Magnitude) for module in model.modules())
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_plain_pefts_in_fp32(
    fp32_folder: Path, pretend_trained: Fill, ids: torch.Tensor, checkpointing: bool
) -> None:
    model = pretend_trained(adapted(fp32_folder, "fp32")).train()
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.get_base_model().enable_input_require_grads()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    due, gradients = by_plain_peft(fp32_folder, ids, adapter_state(model))
    assert loss.item() == pytest.approx(due, rel=1e-6)
    assert gradients.keys() == adapter_state(model).keys()
    assert len(gradients) == 2 * 7 * 3
    for name, parameter in adapter_state(model).items():
        assert gradients[name].abs().max() > 0, name
        assert (parameter.grad - gradients[name]).abs().max() < 1e-5 * gradients[name].abs().max() + 1e-9, name


@pytest.mark.parametrize("experts", ["fp32", "nf4"])
def test_saved_and_loaded_it_says_the_same(
    tiny_folder: Path, pretend_trained: Fill, ids: torch.Tensor, tmp_path: Path, experts: Experts
) -> None:
    model = pretend_trained(adapted(tiny_folder, experts))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert set(saved) == expected_keys(range(2), BOTH, dora=True) == set(saved_names(model))
    assert len(saved) == 2 * 7 * 3
    assert json.loads((tmp_path / "adapter_config.json").read_text())["use_dora"] is True
    dtype = torch.float32 if experts == "fp32" else torch.bfloat16
    loaded = load_adapter(load_model(str(tiny_folder), experts=experts, dtype=dtype).model, str(tmp_path))
    assert not adapter_state(loaded)
    found = logits(loaded, ids, experts)
    assert torch.equal(found, logits(model, ids, experts))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in saved_names(loaded).items())
    theirs = [m for m in loaded.modules() if isinstance(m, DoraLinearLayer)]
    assert {type(module) for module in theirs} == {Magnitude}
    assert len(theirs) == 2 * 7
    if experts == "fp32":
        base = AriaForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.float32)
        plain = logits(PeftModel.from_pretrained(base, tmp_path), ids)
        assert (found - plain).abs().max() <= 1e-5


def test_dropout_and_the_seed_of_a_row_hold_for_dora(
    tiny_folder: Path, pretend_trained: Fill, ids: torch.Tensor
) -> None:
    model = pretend_trained(adapted(tiny_folder, "fp32", dropout=0.5)).train()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert {layer.lora_dropout["default"].p for layer in layers} == {0.5}
    torch.manual_seed(1)
    with torch.no_grad():
        one, other = (model(input_ids=ids).logits for _ in range(2))
    assert not torch.equal(one, other)
    assert torch.isfinite(one).all()
