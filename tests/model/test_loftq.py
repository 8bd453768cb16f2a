"""LoftQ starts adapters where they make up for packing best, and an adapter file holds what was learned since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AriaProcessor

from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.saving import restore_adapter, save_adapter
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.loading import load_model
from aria_finetune.model.loftq import joined, joined_config, parted, start_from_error, start_of
from aria_finetune.model.lora import LoraPlan, add_lora, load_adapter, saved_names

Fill = Callable[..., PeftModel]
RANK, ALPHA = 4, 8


def started(*, rslora: bool = False) -> PeftModel:
    base = load_model("tiny").model
    plan = LoraPlan(("attention", "router", "shared_experts"), rank=RANK, alpha=ALPHA, dropout=0, rslora=rslora)
    model = add_lora(base, plan, base_name=str(open_checkpoint("tiny").folder), seed=0)
    start_from_error(model, open_checkpoint("tiny").read, saved_names)
    return model


@pytest.mark.parametrize("rslora", [False, True])
def test_the_start_is_the_best_of_its_rank(rslora: bool) -> None:
    """Within 2% of what a whole singular value decomposition in fp64 leaves (Eckart and Young)."""
    model, checkpoint = started(rslora=rslora), open_checkpoint("tiny")
    scaling = ALPHA / (RANK**0.5 if rslora else RANK)
    seen = 0
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or name.endswith("router"):
            continue
        packed = layer.get_base_layer().weight
        hub = name.removeprefix("base_model.model.").replace("model.language_model.", "language_model.model.")
        # Dequantised as fp32: as bf16 it would be rounded once more.
        state = packed.quant_state
        state.dtype, before = torch.float32, state.dtype
        error = checkpoint.read(f"{hub}.weight").double() - dequantize_4bit(packed.data, state).double()
        state.dtype = before
        a, b = (getattr(layer, f"lora_{matrix}")["default"].weight.detach().double() for matrix in "AB")
        left = (error - scaling * b @ a).norm()
        best = torch.linalg.svdvals(error)[RANK:].norm()
        assert best <= left * (1 + 1e-6)
        assert left < 1.02 * best
        assert left < 0.97 * error.norm(), "the adapter makes up for nothing"
        seen += 1
    assert seen == 2 * 7


def test_nothing_learned_is_no_change_of_the_original(tiny_aria_processor: AriaProcessor, tmp_path: Path) -> None:
    save_adapter(started(), tmp_path / "adapter", tiny_aria_processor)
    merge(tmp_path / "adapter", tmp_path / "merged")
    base = load_file(open_checkpoint("tiny").folder / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(tensor, merged[name]) for name, tensor in base.items())


def test_the_file_is_a_normal_adapter_of_twice_the_rank(
    tiny_aria_processor: AriaProcessor, pretend_trained: Fill, tmp_path: Path
) -> None:
    model = pretend_trained(started())
    save_adapter(model, tmp_path, tiny_aria_processor)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (2 * RANK, 2 * ALPHA, True)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors.keys() == saved_names(model).keys()
    assert {tensor.shape[0 if "lora_A" in name else 1] for name, tensor in tensors.items()} == {2 * RANK}
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "start": "loftq"}


def test_a_saved_adapter_comes_back_with_its_start(
    tiny_aria_processor: AriaProcessor, pretend_trained: Fill, tmp_path: Path
) -> None:
    model = pretend_trained(started())
    start = start_of(model)
    assert start is not None
    save_adapter(model, tmp_path, tiny_aria_processor)
    other = started()
    for tensor in saved_names(other).values():
        tensor.data.zero_()
    restore_adapter(other, tmp_path)
    found = start_of(other)
    assert found is not None
    for name, tensor in saved_names(model).items():
        assert torch.equal(saved_names(other)[name], tensor), name
        assert torch.equal(found[name], start[name]), name


def test_one_that_does_not_fit_is_refused(tiny_aria_processor: AriaProcessor, tmp_path: Path) -> None:
    save_adapter(started(), tmp_path, tiny_aria_processor)
    base = load_model("tiny").model
    larger = add_lora(base, LoraPlan(rank=RANK, alpha=ALPHA), base_name="tiny", seed=0)
    with pytest.raises(UserError, match="does not fit the recipe's"):
        restore_adapter(larger, tmp_path)


def test_on_dense_weights_all_of_it_counts_and_on_nf4_what_was_trained_there(
    tiny_aria_processor: AriaProcessor, pretend_trained: Fill, ids: torch.Tensor, tmp_path: Path
) -> None:
    model = pretend_trained(started()).eval()
    save_adapter(model, tmp_path, tiny_aria_processor)
    ranks = {}
    for experts in ("nf4", "bf16"):
        loaded = load_adapter(load_model("tiny", experts=experts).model, str(tmp_path))
        linears = [m for n, m in loaded.named_modules() if isinstance(m, LoraLayer) and not n.endswith("router")]
        ranks[experts] = {len(linear.lora_A["default"].weight) for linear in linears}
        if experts == "nf4":
            with torch.no_grad():
                assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert ranks == {"nf4": {RANK}, "bf16": {2 * RANK}}


def test_joining_and_parting() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x.lora_A.weight": (2, 7), "x.lora_B.weight": (5, 2)}
    now, start = ({name: torch.randn(s, generator=generator) for name, s in shapes.items()} for _ in range(2))
    pairs = joined(now, start)
    assert all(
        torch.equal(one[name], other[name])
        for one, other in zip(parted(pairs), (now, start), strict=True)
        for name in one
    )
    a, b = "x.lora_A.weight", "x.lora_B.weight"
    due = now[b].double() @ now[a].double() - start[b].double() @ start[a].double()
    assert (pairs[b].double() @ pairs[a].double() - due).abs().max() < 1e-12
    for rslora in (False, True):
        config = {"r": 8, "lora_alpha": 24, "use_rslora": rslora}
        twice = joined_config(config)
        power = 0.5 if rslora else 1
        assert twice["lora_alpha"] / twice["r"] ** power == pytest.approx(24 / 8**power, rel=1e-12)
