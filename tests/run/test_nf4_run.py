"""A run on an NF4 checkpoint is the run that packs the original weights itself."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from run_values import steady_metrics

from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.proof import prove
from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import BASE_FILE
from aria_finetune.model.hub_layout import SINGLE
from aria_finetune.provenance import hash_file
from aria_finetune.quantization import quantize
from aria_finetune.recipe import Recipe
from aria_finetune.training import train


def test_the_same_losses_and_the_same_adapter(
    make_recipe: Callable[..., Recipe], tiny_folder: Path, fp32_folder: Path, tmp_path: Path
) -> None:
    quantize(str(tiny_folder), tmp_path / "nf4")
    runs = [
        train(
            make_recipe(f"model.path={base}", f"output.dir={tmp_path / base.name}-run", "train.max_steps=4"),
            Console(file=io.StringIO()),
        )
        for base in (tiny_folder, tmp_path / "nf4")
    ]
    assert steady_metrics(runs[0]) == steady_metrics(runs[1])
    adapters = [(run / "adapter/adapter_model.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]

    # Both know the original weights, and merge into them, or into a copy of them in fp32.
    known = [json.loads((run / "adapter" / BASE_FILE).read_text()) for run in runs]
    assert known[0]["values"] == known[1]["values"]
    assert known[1]["sha256"] == {SINGLE: hash_file(tiny_folder / SINGLE)}
    for number, run in enumerate(runs):
        merge(run, tmp_path / f"merged-{number}")
        assert json.loads((tmp_path / f"merged-{number}/merge.json").read_text())["base_identity"]["compared"] == [
            "the same"
        ]
    assert (tmp_path / "merged-0" / SINGLE).read_bytes() == (tmp_path / "merged-1" / SINGLE).read_bytes()
    merge(runs[1], tmp_path / "fp32", base=str(fp32_folder), prove=prove)
    proof = json.loads((tmp_path / "fp32/merge.json").read_text())["proof"]
    assert proof["verdict"] == "ok"
    assert abs(proof["merged_against_live"]["original"]["kl"]) < 1e-6
    assert proof["merged_against_live"]["nf4"]["kl"] > 1e-3, "what was trained on is another base"

    # A bit that flipped in the adapter since the run wrote it.
    file = runs[0] / "adapter/adapter_model.safetensors"
    data = bytearray(adapters[0])
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="its SHA-256 differs"):
        merge(runs[0], tmp_path / "never")
