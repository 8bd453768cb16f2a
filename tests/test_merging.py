"""`merge` as a person calls it: what it says, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_cli import run
from transformers import AriaProcessor

from aria_finetune.adapter.mixture import parse_adapter
from aria_finetune.adapter.saving import ADAPTER_WEIGHTS, save_adapter
from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import identity_of
from aria_finetune.model.experts import LEAN
from aria_finetune.model.hub_layout import SINGLE, open_checkpoint
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.model.nf4_checkpoint import is_nf4


@pytest.fixture(scope="module")
def adapter(
    tiny_folder: Path,
    pretend_trained: Callable[..., PeftModel],
    tiny_aria_processor: AriaProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    loaded = load_model(str(tiny_folder), experts="bf16", implementation=LEAN)
    adapted = add_lora(loaded.model, LoraPlan(rank=4, alpha=8), base_name=str(tiny_folder), seed=1)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    save_adapter(pretend_trained(adapted), folder, tiny_aria_processor, identity_of(loaded.checkpoint))
    return folder


def test_it_says_what_it_found(adapter: Path, tmp_path: Path) -> None:
    code, said = run("merge", adapter, tmp_path / "out")
    assert code == 0
    assert (
        f"10 weights changed, 100.0% of the change is in their dtype; the merged checkpoint is in {tmp_path}/out/"
        in said
    )
    assert "proof: ok; logits of the merged weights on rows of text (61 tokens) and image (" in said
    for line in ("against the live adapter on the original base", "on the base in NF4", "the base without the adapter"):
        assert line in said
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["proof"]["verdict"] == "ok"


def test_without_a_proof(adapter: Path, tmp_path: Path) -> None:
    code, said = run("merge", adapter, tmp_path / "out", "--no-proof")
    assert code == 0
    assert "proof:" not in said
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["proof"] is None


def test_to_nf4_and_merging_into_it(adapter: Path, tmp_path: Path) -> None:
    code, said = run("merge", adapter, tmp_path / "nf4", "--to", "nf4")
    assert code == 0
    assert "the NF4 checkpoint of the merged weights is in" in said
    assert "packed to NF4, against the same" in said
    assert is_nf4(open_checkpoint(str(tmp_path / "nf4")))
    assert [path.name for path in tmp_path.iterdir()] == ["nf4"]
    code, said = run("merge", adapter, tmp_path / "out", "--base", tmp_path / "nf4")
    assert code == 2
    assert "4-bit checkpoint; rounding to 4 bit again would destroy the adapter" in said
    assert "`--to nf4` packs what was merged" in said


def test_an_adapter_that_changes_nothing(adapter: Path, tmp_path: Path) -> None:
    still = Path(shutil.copytree(adapter, tmp_path / "still"))
    tensors = load_file(still / ADAPTER_WEIGHTS)
    save_file({name: 0 * tensor for name, tensor in tensors.items()}, still / ADAPTER_WEIGHTS)
    code, said = run("merge", still, tmp_path / "zero", "--no-proof")
    assert code == 0, said
    assert "no weight is changed, for the adapter changes nothing; the merged checkpoint is in" in said
    assert "%" not in said.partition("no weight")[2]
    tiny = {name: tensor * (1e-9 if "lora_B" in name else 1) for name, tensor in tensors.items()}
    save_file(tiny, still / ADAPTER_WEIGHTS)
    code, said = run("merge", still, tmp_path / "lost", "--no-proof")
    assert code == 0, said
    changed = [tensor["moved"] for tensor in json.loads((tmp_path / "lost" / "merge.json").read_text())["tensors"]]
    moved = sum(share > 0 for share in changed)
    assert (f"{moved} weights changed, " if moved else "no weight is changed, for their dtype") in said


def test_several_adapters(adapter: Path, tmp_path: Path) -> None:
    code, said = run(
        "merge", tmp_path / "both", "--adapter", f"{adapter}:0.7", "--adapter", f"{adapter}:0.3", "--no-proof"
    )
    assert code == 0, said
    run("merge", adapter, tmp_path / "one", "--no-proof")
    for name in ("language_model.model.layers.0.self_attn.q_proj.weight", "language_model.lm_head.weight"):
        both, one = (open_checkpoint(str(tmp_path / folder)).read(name).float() for folder in ("both", "one"))
        assert torch.allclose(both, one, rtol=2.0**-7, atol=0)


def test_what_names_no_adapter_or_too_many(adapter: Path, tmp_path: Path) -> None:
    code, said = run("merge", tmp_path / "out")
    assert code == 2
    assert "no adapter is named" in said
    code, said = run("merge", adapter, adapter, tmp_path / "out")
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_another_base(adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    data = bytearray((base / SINGLE).read_bytes())
    data[-1] ^= 0x40
    (base / SINGLE).write_bytes(data)
    code, said = run("merge", adapter, tmp_path / "out", "--base", base, "--no-proof")
    assert code == 2
    assert "--any-base" in said
    code, said = run("merge", adapter, tmp_path / "out", "--base", base, "--any-base", "--no-proof")
    assert code == 0, said


@pytest.mark.parametrize(
    ("text", "folder", "weight"),
    [
        ("runs/a", "runs/a", 1.0),
        ("runs/a:0.7", "runs/a", 0.7),
        ("runs/a:-1e-1", "runs/a", -0.1),
        ("C:/runs/a:2", "C:/runs/a", 2.0),
    ],
)
def test_adapters_and_weights(text: str, folder: str, weight: float) -> None:
    assert parse_adapter(text) == (Path(folder), weight)


def test_a_folder_with_a_colon_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a:0.5").mkdir()
    assert parse_adapter(str(tmp_path / "a:0.5")) == (tmp_path / "a:0.5", 1.0)
    assert parse_adapter(f"{tmp_path}/a:0.5:2") == (tmp_path / "a:0.5", 2.0)


@pytest.mark.parametrize("text", ["runs/a:heavy", "runs/a:nan", "runs/a:inf", "runs/a:"])
def test_what_is_no_weight(text: str) -> None:
    with pytest.raises(UserError, match="neither a folder nor FOLDER:WEIGHT"):
        parse_adapter(text)
