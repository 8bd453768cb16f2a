"""A run on an NF4 checkpoint is the run that packs the original weights itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from run_values import steady_metrics

from aria_finetune.quantization import quantize
from aria_finetune.recipe import Recipe
from aria_finetune.training import train


def test_the_same_losses_and_the_same_adapter(
    make_recipe: Callable[..., Recipe], tiny_folder: Path, tmp_path: Path
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
