"""Runs on the bundled data: recipes made in the test, materials prepared as training prepares them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aria_finetune.libraries import prepare_libraries
from aria_finetune.recipe import Recipe, load_recipe

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
RECIPE = """
model: {{path: tiny, device: cpu}}
data:
  train:
    - {{path: {data}/photos.json}}
    - {{path: {data}/clip.jsonl}}
    - {{path: {data}/chat.jsonl}}
    - {{path: {data}/warmth-train.jsonl, weight: 0.047}}
  image_size: 490
  max_tokens: 2048
lora: {{dropout: 0}}
moe: {{balance_loss: 0, z_loss: 0}}
train:
  learning_rate: 1e-3
  max_steps: 10
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 2
  dataloader_num_workers: 0
  save_strategy: no
output: {{dir: {output}}}
"""


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    prepare_libraries()


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe on the bundled photographs, clip, text and a few drawings; overrides as on the command line."""

    def make(*overrides: str, name: str = "recipe") -> Recipe:
        file = tmp_path / f"{name}.yaml"
        file.write_text(RECIPE.format(data=DATA, output=tmp_path / "runs" / name))
        return load_recipe(file, overrides)

    return make
