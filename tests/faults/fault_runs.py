"""What runs under fault are made of, and what of two runs must be equal."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from run_values import steady_metrics
from safetensors.torch import load_file

from aria_finetune.checkpoint.retention import checkpoint_path

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
STEPS, SAVE_STEPS = 12, 3
RECIPE = """
model: {{path: tiny, device: cpu}}
data:
  train:
    - {{path: {data}/chat.jsonl}}
    - {{path: {data}/warmth-train.jsonl, weight: 0.06}}
  eval: {{path: {data}/chat.jsonl}}
  image_size: 490
  max_tokens: 1024
lora: {{dropout: 0.1}}
train:
  learning_rate: 1e-3
  max_steps: {steps}
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 2
  dataloader_num_workers: {workers}
  save_steps: {save_steps}
  save_total_limit: 2
  eval_steps: 6
output: {{dir: {output}}}
"""


def result(run: Path) -> dict[str, Any]:
    """What must be equal in two runs of one recipe: the bytes of the adapter and every logged number but for times."""
    return {
        "adapter": hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "metrics": steady_metrics(run),
    }


def learnt(run: Path, step: int) -> tuple[bytes, dict[str, bytes]]:
    """All that an update changes, from the checkpoint of a step: the adapter, and what AdamW remembers."""
    folder = checkpoint_path(run, step)
    state = load_file(folder / "training_state.safetensors")
    remembered = {name: tensor.numpy().tobytes() for name, tensor in state.items() if name.startswith("optimizer/")}
    return (folder / "adapter_model.safetensors").read_bytes(), remembered
