"""The benchmarks of the real size run at a small scale and say what they measured. Nothing looks at how fast anything is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_runs import ROOT, result_of, run

from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.quantization import quantize


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three small layers."""
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    run("make_checkpoint.py", folder, "--scale", "small", "--layers", "3")
    return folder


@pytest.mark.parametrize("images", [0, 1])
def test_training(images: int) -> None:
    found = result_of(
        "full_size.py", "--scale", "small", "--layers", "2", "--tokens", "40", "--images", str(images), "--json"
    )
    assert (found["layers"], found["tokens"], found["images"]) == (2, 40 + 128 * images, images)
    assert (found["finite"], found["all_gradients_nonzero"]) == (True, True)
    assert len(found["losses"]) == 2
    # By hand: 64 experts of 2 layers, 256 x 256 and 128 x 256 weights.
    assert found["bytes"]["routed experts"] == pytest.approx(
        64 * 2 * (256 * 256 + 128 * 256) * (0.5 + 1 / 64), rel=0.002
    )
    assert found["parameters"] > 64 * 2 * (256 * 256 + 128 * 256)
    assert found["bytes_off_by"] == 0.0, "the plan's table of bytes is that of the model"
    assert found["planned_gib"] > 0


def test_training_with_a_small_card_in_mind() -> None:
    small = ("--scale", "small", "--layers", "2", "--tokens", "40", "--json")
    plain = result_of("full_size.py", *small)
    found = result_of(
        "full_size.py", *small, "--lm-head", "nf4", "--embedding", "host", "--experts-on", "host", "--offload"
    )
    assert (found["finite"], found["all_gradients_nonzero"]) == (True, True)
    assert plain["bytes"]["lm_head"] == 768 * 256 * 2
    assert found["bytes"]["lm_head"] == pytest.approx(768 * 256 * (0.5 + 1 / 64), rel=0.02)
    assert found["bytes"]["expert buffers"] == pytest.approx(plain["bytes"]["routed experts"], rel=0.01), "two of two"
    assert found["bytes_off_by"] < 0.005
    assert found["on_host"] == ["routed experts", "embedding"]
    assert found["offloaded_gib"] == round(2 * 2 * 40 * 256 * 2 / 2**30, 4), "two steps of two layers in bf16"
    assert found["losses"] == pytest.approx(plain["losses"], rel=0.2), "other random weights stand in the head"


WITHOUT_A_GRADIENT = """
import torch
import aria_finetune.model.lora as lora

add = lora.add_lora

def without(*arguments, **options):
    model = add(*arguments, **options)
    parameters = model.named_parameters()
    next(p for name, p in parameters if "lora_A" in name).register_hook(torch.zeros_like)
    return model

lora.add_lora = without
"""


def test_a_missing_gradient_is_told(tmp_path: Path) -> None:
    """As if an adapter were out of the graph."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_A_GRADIENT)
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "full_size.py"),
            "--scale",
            "small",
            "--layers",
            "1",
            "--tokens",
            "40",
        ],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "without a gradient: base_model.model.model.language_model.layers.0." in done.stdout


def test_a_made_checkpoint_loads(made: Path) -> None:
    checkpoint = open_checkpoint(str(made))
    assert checkpoint.shards == [f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)]
    assert {tensor.dtype for tensor in checkpoint.stored.values()} == {"BF16"}


def test_loading(made: Path, tmp_path: Path) -> None:
    quantize(str(made), tmp_path / "nf4")
    found = result_of("loading.py", made, tmp_path / "nf4", "--json")
    assert found["equal_logits"] is True
    assert found["ours"]["logits"] == found["nf4"]["logits"] != found["stock"]["logits"]
    assert found["ours"]["model_bytes"] == found["nf4"]["model_bytes"]
    assert found["nf4_share_of_seconds"] == round(found["nf4"]["seconds"] / found["ours"]["seconds"], 4)


def test_the_first_checks_on_a_gpu_run_on_a_cpu() -> None:
    words = ("--device", "cpu", "--scale", "small", "--layers", "2", "--tokens", "40")
    found = result_of("first_gpu.py", *words)
    assert [step["tokens"] for step in found["steps"]] == [40]
    assert set(map(tuple, found["nf4_differs_in"].values())) == {()}
    ways = {"eager", "grouped_mm", "lean", "grouped", "grouped, 8 at a time"}
    assert {(row["tokens"], row["way"]) for row in found["one_layer"]} == {(40, way) for way in ways}
    assert all(by < 1e-2 for row in found["one_layer"] for by in row["differs_by"].values())
