"""Adapters sit on the decoder's attention and routers, in fp32, and are saved as plain PEFT knows them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AriaForConditionalGeneration

from aria_finetune.errors import UserError
from aria_finetune.model.experts import LEAN
from aria_finetune.model.grouped_experts import GROUPED
from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora, expected_keys, load_adapter, saved_names
from aria_finetune.model.targets import Target
from aria_finetune.tiny.architecture import tiny_config

TARGETS: list[tuple[Target, ...]] = [
    ("attention",),
    ("router",),
    ("shared_experts",),
    ("experts",),
    ("attention", "router", "shared_experts", "experts"),
]
PLACES_OF = {
    "attention": [f"self_attn.{side}_proj" for side in "qkvo"],
    "router": ["mlp.router"],
    "shared_experts": [f"mlp.shared_experts.{side}_proj" for side in ("gate", "up", "down")],
    "experts": ["mlp.experts", "mlp.experts.base_layer"],
}
Fill = Callable[..., PeftModel]


def adapted_model(folder: Path, plan: LoraPlan, *, experts: Experts = "bf16", seed: int = 0) -> PeftModel:
    dtype = torch.float32 if experts == "fp32" else torch.bfloat16
    model = load_model(str(folder), experts=experts, dtype=dtype, implementation=LEAN).model
    return add_lora(model, plan, base_name="rhymes-ai/Aria", seed=seed)


def save(model: PeftModel, folder: Path) -> Path:
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture
def adapter(tiny_folder: Path, pretend_trained: Fill, tmp_path: Path) -> Path:
    """An adapter on everything, with B matrices that are not zero."""
    return save(pretend_trained(adapted_model(tiny_folder, LoraPlan(rank=4, alpha=8))), tmp_path / "adapter")


@pytest.mark.parametrize("targets", TARGETS)
def test_the_saved_keys_are_the_expected_ones(tiny_folder: Path, tmp_path: Path, targets: tuple[Target, ...]) -> None:
    model = adapted_model(tiny_folder, LoraPlan(targets=targets, rank=2))
    saved = load_file(save(model, tmp_path / "adapter") / "adapter_model.safetensors")
    assert set(saved) == expected_keys(range(2), targets) == set(saved_names(model))
    assert len(saved) == 2 * 2 * sum(len(PLACES_OF[target]) for target in targets)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("experts", ["nf4", "bf16", "fp32"])
@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_are_in_the_decoder_only(tiny_folder: Path, targets: Sequence[Target], experts: Experts) -> None:
    model = adapted_model(tiny_folder, LoraPlan(targets=targets), experts=experts)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(adapter_state(model))
    assert all("lora_" in name for name in trained)
    wrapped = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    decoder = "base_model.model.model.language_model.layers"
    assert wrapped == {
        f"{decoder}.{layer}.{place}" for layer in range(2) for target in targets for place in PLACES_OF[target]
    }
    assert {parameter.dtype for parameter in adapter_state(model).values()} == {torch.float32}


@pytest.mark.parametrize("targets", TARGETS)
def test_a_fresh_adapter_changes_nothing(tiny_folder: Path, ids: torch.Tensor, targets: tuple[Target, ...]) -> None:
    with torch.no_grad():
        base = load_model(str(tiny_folder), experts="bf16", implementation=LEAN).model(input_ids=ids).logits
        assert torch.equal(adapted_model(tiny_folder, LoraPlan(targets)).eval()(input_ids=ids).logits, base)


def test_the_seed_decides_the_start(tiny_folder: Path) -> None:
    first, again, other = (adapter_state(adapted_model(tiny_folder, LoraPlan(), seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    starts = [name for name in first if "lora_A" in name]
    assert len(starts) == 10
    assert not any(torch.equal(first[name], other[name]) for name in starts)
    assert not any(first[name].any() for name in first if "lora_B" in name)


def test_dropout_acts_in_training_on_linears_only(
    tiny_folder: Path, pretend_trained: Fill, tmp_path: Path, ids: torch.Tensor
) -> None:
    model = pretend_trained(adapted_model(tiny_folder, LoraPlan(dropout=0.5)), deviation=0.1)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(input_ids=ids).logits

    model.train()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    model.eval()
    assert torch.equal(logits(1), logits(2))

    dropouts = {
        name: layer.lora_dropout["default"] for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    }
    assert all(dropout.p == 0.5 for name, dropout in dropouts.items() if ".self_attn." in name)
    assert {type(dropout) for name, dropout in dropouts.items() if name.endswith(".router")} == {torch.nn.Identity}
    config = json.loads((save(model, tmp_path / "adapter") / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.0, "PEFT refuses to load a router adapter with dropout"


@pytest.mark.parametrize("plan", [LoraPlan(dropout=0.0), LoraPlan(targets=("router",), dropout=0.5)])
def test_without_dropout_training_is_deterministic(
    tiny_folder: Path, pretend_trained: Fill, ids: torch.Tensor, plan: LoraPlan
) -> None:
    model = pretend_trained(adapted_model(tiny_folder, plan), deviation=0.1).train()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 24 / 16), (True, 24 / 4)])
def test_scaling(tiny_folder: Path, tmp_path: Path, rslora: bool, scaling: float) -> None:
    model = adapted_model(tiny_folder, LoraPlan(rank=16, alpha=24, rslora=rslora))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert {module.scaling["default"] for module in layers} == {scaling}
    config = json.loads((save(model, tmp_path / "adapter") / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (16, 24, rslora)


def test_the_saved_adapter_names_its_base(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "rhymes-ai/Aria"
    assert config["peft_type"] == "LORA"


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


def plain(folder: Path, dtype: torch.dtype) -> AriaForConditionalGeneration:
    return AriaForConditionalGeneration.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("implementation", [LEAN, GROUPED])
@pytest.mark.parametrize("layers", [None, (1,)])
@pytest.mark.parametrize("targets", TARGETS)
def test_plain_peft_gives_the_same_logits_in_fp32(
    tiny_folder: Path,
    pretend_trained: Fill,
    tmp_path: Path,
    ids: torch.Tensor,
    targets: tuple[Target, ...],
    layers: tuple[int, ...] | None,
    implementation: str,
) -> None:
    model = pretend_trained(adapted_model(tiny_folder, LoraPlan(targets, rank=4, alpha=8, layers=layers)))
    adapter = save(model, tmp_path / "adapter")
    theirs = logits_of(PeftModel.from_pretrained(plain(tiny_folder, torch.float32), adapter), ids)
    base = load_model(str(tiny_folder), experts="fp32", dtype=torch.float32, implementation=implementation).model
    without = logits_of(base, ids)
    ours = logits_of(load_adapter(base, str(adapter)), ids)
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - without).abs().max() > 0.02, "the adapter does nothing"


def test_plain_peft_gives_the_same_logits_in_bf16_up_to_bf16(
    tiny_folder: Path, adapter: Path, ids: torch.Tensor
) -> None:
    """Plain transformers routes in bf16, so the two differ, but by no more than bf16 makes both differ from fp32."""
    exact = logits_of(PeftModel.from_pretrained(plain(tiny_folder, torch.float32), adapter), ids)
    theirs = logits_of(PeftModel.from_pretrained(plain(tiny_folder, torch.bfloat16), adapter), ids)
    ours = logits_of(load_adapter(load_model(str(tiny_folder), experts="bf16").model, str(adapter)), ids)
    rounding = (theirs - exact).abs().mean()
    assert (ours - theirs).abs().mean() <= 2 * rounding
    without = logits_of(plain(tiny_folder, torch.bfloat16), ids)
    assert (theirs - without).abs().mean() > 3 * rounding, "the adapter does nothing"


def test_a_loaded_adapter_is_frozen(tiny_folder: Path, adapter: Path) -> None:
    model = load_adapter(load_model(str(tiny_folder)).model, str(adapter))
    assert not adapter_state(model)
    stored = load_file(adapter / "adapter_model.safetensors")
    assert all(torch.equal(parameter, stored[name]) for name, parameter in saved_names(model).items())


def refusal(folder: Path, base: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_adapter(load_model(str(base)).model, str(folder))
    assert caught.value.where == str(folder)
    assert "adapter folder of a finished run" in str(caught.value.fix)
    return caught.value.message


@pytest.mark.parametrize("folder", ["no-such-folder", "no/such"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(tiny_folder: Path, folder: str) -> None:
    assert "is not there" in refusal(Path(folder), tiny_folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file(tiny_folder: Path, adapter: Path, file: str) -> None:
    (adapter / file).rename(adapter / "adapter_model.bin")
    assert f"{file}" in refusal(adapter, tiny_folder)


def test_a_damaged_file(tiny_folder: Path, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "can't be loaded" in refusal(adapter, tiny_folder)


def test_an_adapter_of_another_rank(tiny_folder: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert "can't be loaded" in refusal(adapter, tiny_folder)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_of_a_model_with_other_layers(tiny_folder: Path, adapter: Path, tmp_path: Path, layers: int) -> None:
    """PEFT itself loads it: tensors without a place are dropped, places without a tensor stay random."""
    config = tiny_config()
    config.text_config.num_hidden_layers = layers
    other = tmp_path / "other"
    AriaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(other)
    message = refusal(adapter, other)
    assert "10 tensor(s)" in message
    assert f".layers.{min(layers, 2)}." in message


def test_a_tensor_that_was_lost(tiny_folder: Path, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    lost = "base_model.model.model.language_model.layers.1.self_attn.v_proj.lora_B.weight"
    del tensors[lost]
    save_file(tensors, weights)
    assert f"1 tensor(s) such as {lost}" in refusal(adapter, tiny_folder)


def test_the_folder_of_the_run_stands_for_its_adapter(tiny_folder: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "run" / "adapter")
    model = load_adapter(load_model(str(tiny_folder)).model, str(tmp_path / "run"))
    assert set(saved_names(model)) == expected_keys(range(2), ("attention", "router"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_parameters": ["mlp.experts.down_proj"]}, "one of their two projections alone"),
        ({"alpha_pattern": {"mlp.experts": 4}}, "differ in rank or alpha"),
    ],
)
def test_adapters_of_experts_that_are_not_ours(
    tiny_folder: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    folder = save(adapted_model(tiny_folder, LoraPlan(("experts",), rank=2)), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        load_adapter(load_model(str(tiny_folder), implementation=LEAN).model, str(folder))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_adapters_of_experts_where_they_would_not_take_part(
    tiny_folder: Path, tmp_path: Path, implementation: str
) -> None:
    folder = save(adapted_model(tiny_folder, LoraPlan(("experts",), rank=2)), tmp_path / "adapter")
    with pytest.raises(UserError, match=f"experts that {implementation} computes can't have adapters") as caught:
        load_adapter(load_model(str(tiny_folder), implementation=implementation).model, str(folder))
    assert "moe.implementation" in str(caught.value.fix)


def test_an_experts_adapter_whose_rank_is_another(tiny_folder: Path, tmp_path: Path) -> None:
    folder = save(adapted_model(tiny_folder, LoraPlan(("experts",), rank=4)), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text()) | {"r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="can't be loaded"):
        load_adapter(load_model(str(tiny_folder), implementation=LEAN).model, str(folder))
