"""Bytes by component from shapes alone are those counted in a loaded model, to the byte."""

from __future__ import annotations

import json

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from peft.tuners.lora import LoraLayer

from aria_finetune.model.components import components
from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora
from aria_finetune.model.targets import Target
from aria_finetune.planner.architecture import Architecture
from aria_finetune.planner.resident import Adapter, Holding, adapter_bytes, model_components, nf4_bytes
from aria_finetune.tiny import CHECKPOINT

ARCHITECTURE = Architecture.from_config(json.loads((CHECKPOINT / "config.json").read_text()))


@pytest.mark.parametrize(
    ("experts", "dtype", "holding"),
    [
        ("nf4", torch.bfloat16, Holding()),
        ("nf4", torch.float32, Holding(width=4)),
        ("bf16", torch.bfloat16, Holding(packed=False)),
        ("fp32", torch.float32, Holding(packed=False, width=4)),
    ],
)
def test_the_parts_of_a_loaded_model(experts: Experts, dtype: torch.dtype, holding: Holding) -> None:
    loaded = load_model("tiny", experts=experts, dtype=dtype, implementation="eager")
    assert model_components(ARCHITECTURE, holding) == components(loaded.model)


@pytest.mark.parametrize("weights", [64, 128, 64 * 256, 64 * 257, 3328 * 2560])
def test_a_packed_tensor(weights: int) -> None:
    packed, state = quantize_4bit(torch.randn(weights), blocksize=64, compress_statistics=True, quant_type="nf4")
    held = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert nf4_bytes(weights) == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize(
    "targets", [("attention",), ("router",), ("shared_experts",), ("experts",), ("attention", "router", "experts")]
)
@pytest.mark.parametrize(("rank", "layers"), [(1, None), (8, None), (8, (1,))])
def test_the_adapter(targets: tuple[Target, ...], rank: int, layers: tuple[int, ...] | None) -> None:
    model = load_model("tiny", implementation="lean").model
    adapted = add_lora(model, LoraPlan(targets, rank=rank, layers=layers), base_name="tiny", seed=0)
    trained = sum(tensor.numel() for tensor in adapter_state(adapted).values())
    adapter = Adapter(targets, rank, layers=None if layers is None else len(layers))
    assert adapter.parameters(ARCHITECTURE) == trained
    assert adapter_bytes(adapter, ARCHITECTURE) == (4 * trained, 4 * trained, 8 * trained)


@pytest.mark.parametrize("targets", [("projector",), ("vision",), ("attention", "projector", "vision")])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_tower_and_projector(targets: tuple[Target, ...], dora: bool) -> None:
    base = load_model("tiny", implementation="eager").model
    adapted = add_lora(base, LoraPlan(targets, rank=4, dora=dora), base_name="tiny", seed=0)
    trained = sum(tensor.numel() for tensor in adapter_state(adapted).values())
    assert Adapter(targets, 4, dora=dora).parameters(ARCHITECTURE) == trained


def test_magnitudes_of_dora_are_counted() -> None:
    targets: tuple[Target, ...] = ("attention", "shared_experts")
    plan = LoraPlan(targets, rank=4, dora=True)
    adapted = add_lora(load_model("tiny", implementation="eager").model, plan, base_name="tiny", seed=0)
    trained = sum(tensor.numel() for tensor in adapter_state(adapted).values())
    assert Adapter(targets, 4, dora=True).parameters(ARCHITECTURE) == trained
    layer = adapted.base_model.model.model.language_model.layers[0]
    linears = [module for module in layer.modules() if isinstance(module, LoraLayer)]
    assert Adapter(targets, 4).outputs(ARCHITECTURE) == sum(linear.out_features for linear in linears)


def test_what_is_not_loaded_or_not_on_the_device() -> None:
    parts = {part.name: part for part in model_components(ARCHITECTURE, Holding(vision=False, embedding_on_host=True))}
    assert not {"vision tower", "projector"} & set(parts)
    assert parts["embedding"].home == "host"
    assert parts["lm_head"].home == parts["routed experts"].home == "device"
