"""One bit that is not as it should be, in a merged tensor or in a copied one, is found wherever it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aria_finetune.adapter import exactness
from aria_finetune.adapter.exactness import Exactness, check_tensors
from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.mixture import open_mixture
from aria_finetune.model.hub_layout import SINGLE, open_checkpoint
from aria_finetune.model.lora import LoraPlan

PLAN = LoraPlan(targets=("attention", "router", "experts"), rank=2, alpha=4)
PLACES = {
    "a projection": "language_model.model.layers.0.self_attn.q_proj.weight",
    "the last expert": "language_model.model.layers.1.mlp.experts.fc2.weight",
    "a copy": "language_model.model.embed_tokens.weight",
    "a copied vector": "language_model.model.norm.weight",
}


@pytest.fixture(scope="module")
def adapter(make_adapter: Callable[..., Path], tiny_folder: Path) -> Path:
    return make_adapter(tiny_folder, PLAN)


@pytest.fixture(scope="module")
def merged(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact") / "merged"
    merge(adapter, folder)
    return folder


def found(adapter: Path, base: Path, merged: Path) -> Exactness:
    return check_tensors(open_mixture([(adapter, 1.0)]), open_checkpoint(str(base)), open_checkpoint(str(merged)))


def test_all_is_as_it_should_be(
    adapter: Path, merged: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = 2 * (4 + 1 + 2)
    due = Exactness(changed, len(load_file(tiny_folder / SINGLE)) - changed)
    assert found(adapter, tiny_folder, merged) == due
    monkeypatch.setattr(exactness, "PIECE_VALUES", 1000)
    assert found(adapter, tiny_folder, merged) == due


@pytest.mark.parametrize("place", PLACES)
def test_one_bit(place: str, adapter: Path, merged: Path, tiny_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(merged, tmp_path / "copy"))
    tensors = load_file(copy / SINGLE)
    tensors[PLACES[place]].view(-1).view(torch.int16)[-1] ^= 1
    save_file(tensors, copy / SINGLE, {"format": "pt"})
    found_there = found(adapter, tiny_folder, copy)
    assert found_there.wrong == (PLACES[place],)
    assert "1 are wrong" in found_there.describe()
