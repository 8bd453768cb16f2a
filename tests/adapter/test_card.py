"""The model card says what run.json says, in a form that the hub reads, and its program runs as it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.adapter.export import export
from aria_finetune.model.rope import ROPE_FILE, Rope, write_rope

RUN = {
    "status": "finished",
    "recipe": {
        "model": {"path": "tiny", "rope_theta": None},
        "lora": {"rank": 4, "targets": ["attention", "router"]},
        "train": {"learning_rate": 5e-5, "max_steps": 7},
        "data": {"train": [{"path": "/home/me/secret-project/photos.json"}]},
    },
    "data": {"train": [{"path": "/home/me/secret-project/photos.json", "sha256": "ab" * 32}], "eval": []},
    "rows": {"train": {"rows": 1234, "tokens": 56789, "reasons": {}}},
    "losses": {"first": 2.5, "last": 0.125, "eval_last": None},
    "steps": 7,
    "training_seconds": 61.7,
    "device": "a GPU",
    "versions": {"python": "3.11", "torch": "2.13"},
}


@pytest.fixture
def run(adapter: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    shutil.copytree(adapter, folder / ADAPTER_FOLDER)
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "evaluation").mkdir()
    scores = {"rows": 64, "base": {"accuracy": 0.0, "correct": 0}, "adapter": {"accuracy": 0.953125, "correct": 61}}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(scores))
    return folder


def card(run: Path, output: Path, **options: Any) -> str:
    export(run, output, **options)
    return (output / "README.md").read_text()


def test_the_front_matter_is_what_the_hub_reads(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out", base="rhymes-ai/Aria", license_id="cc-by-4.0")
    assert yaml.safe_load(text.split("---")[1]) == {
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "license": "cc-by-4.0",
        "base_model": "rhymes-ai/Aria",
        "base_model_relation": "adapter",
        "tags": ["aria", "lora", "transformers", "aria-finetune"],
    }
    read = ModelCard(text)
    assert read.data.license == "cc-by-4.0"
    assert read.data.base_model == "rhymes-ai/Aria"
    assert read.data.library_name == "peft"


def test_nothing_is_said_that_is_not_known(run: Path, tmp_path: Path) -> None:
    front = yaml.safe_load(card(run, tmp_path / "out").split("---")[1])
    assert "license" not in front
    assert "base_model" not in front, "a folder of this machine is no name on the hub"
    (run / "run.json").unlink()
    shutil.rmtree(run / "evaluation")
    bare = card(run, tmp_path / "bare")
    assert "## Data" not in bare
    assert "## Scores" not in bare
    assert "## Use" in bare


def test_what_the_run_says(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out", base="rhymes-ai/Aria")
    assert "# Aria, fine-tuned: my-run" in text
    assert (
        "A LoRA adapter of rank 4 (alpha 8) for rhymes-ai/Aria, on attention, routers: 10 weights are adapted." in text
    )
    assert f"| train | `photos.json` | `{'ab' * 8}` |" in text
    assert "secret-project" not in text
    assert "For training: 1,234 rows, 56,789 tokens." in text
    assert "first loss 2.5, last loss 0.125, 7 steps, 62 seconds on a GPU." in text
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    assert recipe == {key: RUN["recipe"][key] for key in ("lora", "train")}  # type: ignore[index]
    assert "| evaluation | accuracy | correct |\n|---|---|---|\n| base | 0 | 0 |\n| adapter | 0.9531 | 61 |" in text
    assert "Versions: python 3.11, torch 2.13." in text
    assert "for transformers 5.18 or newer" in text
    assert "for transformers up to 5.17" in card(run, tmp_path / "old", layout="old")


@pytest.mark.parametrize(
    "odd",
    [
        {"data": None, "recipe": None, "losses": None, "rows": None, "versions": None},
        {"data": {"train": None, "eval": [None, "x", {}, {"path": 3}]}, "rows": {"train": None}, "recipe": []},
        {"recipe": {"model": None}, "losses": {"first": "low"}, "steps": "7", "training_seconds": None},
        {"name": "someone else's", "data": "mnist", "losses": [3, 2, 1], "versions": ["1.0"]},
    ],
)
def test_an_odd_run_makes_a_card_of_what_is_there(run: Path, tmp_path: Path, odd: dict[str, Any]) -> None:
    (run / "run.json").write_text(json.dumps(odd))
    scores = {"base": {"accuracy": None}, "adapter": {"accuracy": 0.5}}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(scores))
    text = card(run, tmp_path / "out")
    assert "## Use" in text
    assert "## Data" not in text
    assert "## Training" not in text
    assert "| base |  |\n| adapter | 0.5 |" in text


def test_only_what_is_odd_is_left_out(run: Path, tmp_path: Path) -> None:
    (run / "run.json").write_text(json.dumps(RUN | {"data": None, "losses": {"first": 2.5, "last": None}}))
    text = card(run, tmp_path / "out")
    assert "For training: 1,234 rows" in text
    assert "first loss 2.5, 7 steps, 62 seconds on a GPU." in text


@pytest.mark.parametrize("theta", [None, 123456.0])
def test_its_program_runs(run: Path, tmp_path: Path, theta: float | None) -> None:
    """With the RoPE base that lies beside the adapter, which an export of an export has too."""
    if theta is None:
        (run / ADAPTER_FOLDER / ROPE_FILE).unlink()
    else:
        write_rope(run / ADAPTER_FOLDER, Rope(theta, 4096))
    export(run, tmp_path / "first")
    text = card(tmp_path / "first", tmp_path / "out")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert (f'["rope_theta"] = {theta}' in program) == (theta is not None)
    check = '\nassert model.peft_config["default"].r == 4\nprint(len(output[0]) - inputs["input_ids"].shape[1])\n'
    done = subprocess.run(
        [sys.executable, "-c", program + check],
        cwd=tmp_path / "out",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout.splitlines()[-1]) <= 32
