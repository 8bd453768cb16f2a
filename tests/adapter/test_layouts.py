"""An adapter is the same matrices in every layout of transformers, and plain PEFT finds a place for each of them there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from old_modules import as_old
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AriaForConditionalGeneration

from aria_finetune.adapter.export import export
from aria_finetune.adapter.layouts import adapted_config, renamed
from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import SINGLE
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, load_adapter

MakeAdapter = Callable[..., Path]
LAYER = "base_model.model.model.language_model.layers.0."
PLANS = {
    "all of the decoder": LoraPlan(targets=("attention", "router", "shared_experts", "experts"), rank=4, alpha=6),
    "one layer": LoraPlan(targets=("attention", "router", "experts"), rank=2, alpha=4, layers=(1,)),
    "tower and projector": LoraPlan(targets=("vision", "projector", "router"), rank=4, alpha=8),
    "DoRA": LoraPlan(targets=("attention",), rank=4, alpha=8, dora=True),
}


def ids() -> torch.Tensor:
    return torch.randint(10, 700, (2, 30), generator=torch.Generator().manual_seed(0))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids()).logits
    return found


def plain(folder: Path) -> AriaForConditionalGeneration:
    return AriaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("plan", ["all of the decoder", "one layer"])
def test_the_old_layout_is_refused_with_a_word_on_export(
    plan: str, fp32_folder: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    export(make_adapter(fp32_folder, PLANS[plan]), tmp_path / "old", layout="old")
    with pytest.raises(UserError) as caught:
        load_adapter(load_model(str(fp32_folder)).model, str(tmp_path / "old"))
    assert "`aria-finetune export` first" in str(caught.value.fix)


@pytest.mark.parametrize("plan", PLANS)
def test_there_and_back(plan: str, fp32_folder: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter(fp32_folder, PLANS[plan], deviation=0.03)
    export(adapter, tmp_path / "old", layout="old")
    export(tmp_path / "old", tmp_path / "back")
    before, after = (json.loads((folder / ADAPTER_CONFIG).read_text()) for folder in (adapter, tmp_path / "back"))
    same = ("r", "lora_alpha", "use_dora", "use_rslora", "target_parameters", "base_model_name_or_path")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    first, old, back = (
        load_file(folder / ADAPTER_WEIGHTS) for folder in (adapter, tmp_path / "old", tmp_path / "back")
    )
    assert first.keys() == back.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in first.items())
    assert len(old) == len(first)
    assert not any("base_layer" in name for name in old)
    due, model = plain(fp32_folder), plain(fp32_folder)
    live = logits(PeftModel.from_pretrained(due, adapter))
    migrated = PeftModel.from_pretrained(as_old(model), tmp_path / "old")
    held = {name.replace(".default", "") for name, _ in migrated.named_parameters() if "lora_" in name}
    assert {name.removesuffix(".weight") for name in held} == {name.removesuffix(".weight") for name in old}
    assert (logits(migrated) - live).abs().max() <= 1e-5 * live.abs().max()
    assert torch.equal(logits(PeftModel.from_pretrained(plain(fp32_folder), tmp_path / "back")), live)


def test_one_that_was_trained_in_the_old_layout(fp32_folder: Path, tmp_path: Path) -> None:
    """As PEFT makes it there: the router among the modules, with dropout where that was possible."""
    old = as_old(plain(fp32_folder))
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.router)",
        target_parameters=["mlp.experts.fc1.weight", "mlp.experts.fc2.weight"],
    )
    config.base_model_name_or_path = str(fp32_folder)
    model = get_peft_model(old, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.03, generator=generator)
    live = logits(model)
    model.save_pretrained(tmp_path / "old", save_embedding_layers=False)
    names = load_file(tmp_path / "old" / ADAPTER_WEIGHTS).keys()
    assert f"{LAYER}mlp.experts.fc1.lora_A.weight" in names
    assert f"{LAYER}mlp.router.lora_A.weight" in names

    export(tmp_path / "old", tmp_path / "new")
    migrated = logits(PeftModel.from_pretrained(plain(fp32_folder), tmp_path / "new"))
    assert (migrated - live).abs().max() <= 1e-5 * live.abs().max()
    assert (live - logits(plain(fp32_folder))).abs().max() > 1e-2
    with pytest.raises(ValueError, match="not supported"):
        PeftModel.from_pretrained(plain(fp32_folder), tmp_path / "old")

    # Merging reads either.
    for layout in ("old", "new"):
        merge(tmp_path / layout, tmp_path / f"merged-{layout}")
    assert (tmp_path / "merged-old" / SINGLE).read_bytes() == (tmp_path / "merged-new" / SINGLE).read_bytes()


def test_names_from_before_the_parts_had_prefixes(fp32_folder: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter(fp32_folder, PLANS["tower and projector"], deviation=0.03)
    oldest = Path(shutil.copytree(adapter, tmp_path / "oldest"))

    def before(name: str) -> str:
        inner = name.removeprefix("base_model.model.model.")
        return "base_model.model." + re.sub(r"^language_model\.", "language_model.model.", inner)

    tensors = {before(name): tensor for name, tensor in load_file(adapter / ADAPTER_WEIGHTS).items()}
    save_file(tensors, oldest / ADAPTER_WEIGHTS)
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    linears = {name.rpartition(".lora_")[0].removeprefix("base_model.model.") for name in tensors}
    config |= {"target_modules": sorted(linears), "target_parameters": None, "lora_dropout": 0.05}
    (oldest / ADAPTER_CONFIG).write_text(json.dumps(config))
    export(oldest, tmp_path / "new")
    found, due = (load_file(folder / ADAPTER_WEIGHTS) for folder in (tmp_path / "new", adapter))
    assert found.keys() == due.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in due.items())
    live = logits(PeftModel.from_pretrained(plain(fp32_folder), adapter))
    assert torch.equal(logits(PeftModel.from_pretrained(plain(fp32_folder), tmp_path / "new")), live)


@pytest.mark.parametrize(
    ("old", "current"),
    [
        (f"{LAYER}mlp.experts.fc1", f"{LAYER}mlp.experts.base_layer"),
        (f"{LAYER}mlp.experts.fc2", f"{LAYER}mlp.experts"),
        (f"{LAYER}mlp.router", f"{LAYER}mlp.router"),
        (f"{LAYER}self_attn.q_proj", f"{LAYER}self_attn.q_proj"),
        ("base_model.model.model.vision_tower.encoder.layers.1.mlp.fc1",) * 2,
    ],
)
def test_names(old: str, current: str) -> None:
    for name in (old, current):
        assert renamed(name, "old") == old
        assert renamed(name, "current") == current


def test_what_is_right_already_is_left_as_it_was(adapter: Path) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    stems = {name.rpartition(".lora_")[0] for name in load_file(adapter / ADAPTER_WEIGHTS)}
    assert adapted_config(config, stems, "current") == config
