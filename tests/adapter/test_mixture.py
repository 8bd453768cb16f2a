"""Several adapters are the weighted sum of what each changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AriaForConditionalGeneration

from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.mixture import open_mixture
from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import BASE_FILE
from aria_finetune.model.hub_layout import SINGLE
from aria_finetune.model.lora import LoraPlan
from aria_finetune.model.rope import Rope, write_rope

MakeAdapter = Callable[..., Path]
A = LoraPlan(targets=("attention", "router"), rank=4, alpha=8)
B = LoraPlan(targets=("attention", "experts"), rank=2, alpha=6)
DORA = LoraPlan(targets=("attention",), rank=4, alpha=8, dora=True)


def changes(base: Path, merged: Path) -> dict[str, np.ndarray]:
    before, after = load_file(base / SINGLE), load_file(merged / SINGLE)
    return {name: after[name].double().numpy() - before[name].double().numpy() for name in before}


@pytest.mark.parametrize("plans", [(A, B), (A, DORA), (DORA, DORA)], ids=["ranks differ", "with DoRA", "DoRA"])
def test_a_sum_of_changes(
    plans: tuple[LoraPlan, LoraPlan], fp32_folder: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """Each merged alone, in fp32, is the reference of both together."""
    adapters = [make_adapter(fp32_folder, plan, deviation=0.02 * (1 + n)) for n, plan in enumerate(plans)]
    for number, adapter in enumerate(adapters):
        merge(adapter, tmp_path / str(number))
    changed = merge([(adapters[0], 0.7), (adapters[1], -0.3)], tmp_path / "both")
    found, *alone = (changes(fp32_folder, tmp_path / name) for name in ("both", "0", "1"))
    touched = set()
    for name, change in found.items():
        due = 0.7 * alone[0][name] - 0.3 * alone[1][name]
        np.testing.assert_allclose(change, due, rtol=0, atol=3e-7)
        touched |= {name} if np.abs(due).max() else set()
    assert {tensor.name for tensor in changed} == touched
    report = json.loads((tmp_path / "both" / "merge.json").read_text())
    assert [entry["weight"] for entry in report["adapters"]] == [0.7, -0.3]
    assert report["base_identity"]["compared"] == ["the same"] * 2


def test_it_says_what_peft_says_with_both(fp32_folder: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Of two on attention PEFT adds the products itself, here each with its scaling times its weight."""
    first = make_adapter(fp32_folder, LoraPlan(targets=("attention",), rank=4, alpha=8))
    second = make_adapter(fp32_folder, LoraPlan(targets=("attention",), rank=3, alpha=6), deviation=0.03)
    merge([(first, 0.7), (second, 0.3)], tmp_path / "merged")
    ids = torch.randint(10, 700, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        merged = AriaForConditionalGeneration.from_pretrained(tmp_path / "merged")(input_ids=ids).logits
        model = PeftModel.from_pretrained(AriaForConditionalGeneration.from_pretrained(fp32_folder), first, "first")
        model.load_adapter(second, "second")
        model.add_weighted_adapter(["first", "second"], [0.7, 0.3], "both", combination_type="cat")
        model.set_adapter("both")
        live = model.eval()(input_ids=ids).logits
    assert (merged - live).abs().max() <= 1e-5 * live.abs().max()


def test_half_of_one(fp32_folder: Path, adapter: Path, tmp_path: Path) -> None:
    merge([(adapter, 0.5)], tmp_path / "half", base=str(fp32_folder))
    merge(adapter, tmp_path / "whole", base=str(fp32_folder))
    half, whole = (changes(fp32_folder, tmp_path / name) for name in ("half", "whole"))
    for name, change in half.items():
        np.testing.assert_allclose(change, 0.5 * whole[name], rtol=0, atol=3e-7)


def test_different_rope_bases_are_refused(adapter: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    write_rope(other, Rope(1234.0, 4096))
    with pytest.raises(UserError, match="different RoPE bases"):
        open_mixture([(adapter, 0.5), (other, 0.5)])


def test_adapters_of_different_bases_are_refused(
    adapter: Path, odd_bases: dict[torch.dtype, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    other = make_adapter(odd_bases[torch.bfloat16])
    with pytest.raises(UserError, match="different bases"):
        merge([(adapter, 0.5), (other, 0.5)], tmp_path / "out")
    with pytest.raises(UserError, match="the base lacks 5"):
        merge([(adapter, 0.5), (other, 0.5)], tmp_path / "out", any_base=True)
    assert not list(tmp_path.iterdir())


def test_other_names_of_bases_are_of_the_same_weights_or_refused(
    adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """What decides is `base.json`; without it nobody knows, and a person must say."""
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/where"}))
    both = [(adapter, 0.5), (other, 0.5)]
    merge(both, tmp_path / "recorded")
    (other / BASE_FILE).unlink()
    with pytest.raises(UserError, match="some/where") as caught:
        merge(both, tmp_path / "out")
    assert "--base" in str(caught.value.fix)
    assert "--any-base" in str(caught.value.fix)
    merge(both, tmp_path / "named", base=str(tiny_folder))
    merge(both, tmp_path / "any", any_base=True)
    for name in ("named", "any"):
        assert (tmp_path / name / SINGLE).read_bytes() == (tmp_path / "recorded" / SINGLE).read_bytes()
    assert not (tmp_path / "out").exists()
    (other / "adapter_config.json").write_text(json.dumps(config | {"revision": "b" * 40}))
    with pytest.raises(UserError, match="at bbbb"):
        merge(both, tmp_path / "out")
