"""The raw layout and the hub layout hold the same bytes under other names; what comes out loads and says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AriaForConditionalGeneration

from aria_finetune.adapter.export import export_any
from aria_finetune.adapter.raw_layout import migrate_checkpoint
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import INDEX, SINGLE, is_raw, open_checkpoint
from aria_finetune.model.loading import load_model


def raw_name(name: str) -> str:
    """By transformers' table in `convert_aria_weights_to_hf.py`, the other way round."""
    if name.startswith("vision_tower."):
        return name.replace("vision_tower", "vision_tower.vision_model", 1)
    if name.startswith("multi_modal_projector."):
        name = name.replace("layer_norm_kv", "ln_kv").replace("feed_forward", "ffn")
        return name.replace("projector.layer_norm", "projector.ln_ffn")
    return name


@pytest.fixture
def raw(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny Aria as the authors' code would have saved it: other names, no post_layernorm, a configuration of its own."""
    folder = tmp_path / "raw"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / SINGLE)
    kept = {raw_name(name): tensor for name, tensor in tensors.items() if "post_layernorm" not in name}
    save_file(kept, folder / SINGLE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text |= {"model_type": "aria_moe_lm", "moe_intermediate_size": text["intermediate_size"], "intermediate_size": 999}
    config["vision_config"]["model_type"] = "aria_vision_model"
    config["auto_map"] = {"AutoConfig": "modeling_aria.AriaConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_aria.py").write_text("never run")
    return folder


def logits(folder: Path) -> torch.Tensor:
    ids = torch.randint(10, 700, (2, 30), generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(1, 3, 490, 490, generator=torch.Generator().manual_seed(1))
    ids[0, :] = torch.cat([torch.full((20,), 11), torch.arange(20, 30)])
    model, report = AriaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        seen = model.eval().model.get_image_features(pixel_values=pixels).pooler_output
        return torch.cat([model(input_ids=ids).logits.flatten(), seen.flatten()])


def test_from_raw_to_hub(raw: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="older raw layout") as caught:
        open_checkpoint(str(raw))
    assert "aria-finetune export" in str(caught.value.fix)
    written = export_any(raw, tmp_path / "hub")
    checkpoint = open_checkpoint(str(tmp_path / "hub"))
    original = load_file(tiny_folder / SINGLE)
    assert set(checkpoint.stored) == set(original)
    for name, tensor in original.items():
        found = checkpoint.read(name)
        assert torch.equal(found, tensor) or "post_layernorm" in name, name
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    assert torch.equal(logits(tmp_path / "hub"), logits(tiny_folder))
    load_model(str(tmp_path / "hub"))  # which refuses any name that is not there
    assert "modeling_aria.py" not in written
    assert "auto_map" not in json.loads((tmp_path / "hub" / "config.json").read_text())


def test_there_and_back(tiny_folder: Path, tmp_path: Path) -> None:
    assert is_raw(migrate_checkpoint(str(tiny_folder), tmp_path / "raw", "old"))
    original = load_file(tiny_folder / SINGLE)
    weight_map = json.loads((tmp_path / "raw" / INDEX).read_text())["weight_map"]
    assert set(weight_map) == {raw_name(name) for name in original}
    migrate_checkpoint(str(tmp_path / "raw"), tmp_path / "back", "current")
    back = open_checkpoint(str(tmp_path / "back"))
    assert set(back.stored) == set(original)
    assert all(torch.equal(back.read(name), tensor) for name, tensor in original.items())
    assert torch.equal(logits(tmp_path / "back"), logits(tiny_folder))


@pytest.mark.parametrize("layout", ["current", "old"])
def test_what_is_in_that_layout_already(raw: Path, tiny_folder: Path, tmp_path: Path, layout: str) -> None:
    source = raw if layout == "old" else tiny_folder
    with pytest.raises(UserError, match="layout already"):
        migrate_checkpoint(str(source), tmp_path / "out", layout)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aria_finetune.checkpoint.space.free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match="are free"):
        migrate_checkpoint(str(raw), tmp_path / "out", "current")


def test_options_of_adapters_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is a checkpoint"):
        export_any(raw, tmp_path / "out", base="some/base")
