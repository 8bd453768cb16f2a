"""Optimizer, scheduler and generators through safetensors and JSON, bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from torch import nn

from aria_finetune.checkpoint.state import (
    TENSORS_FILE,
    VALUES_FILE,
    TrainingState,
    load_generators,
    load_values,
    parameter_names,
)
from aria_finetune.errors import UserError

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "8bit": lambda parameters: bitsandbytes.optim.AdamW8bit(parameters, lr=1e-2, min_8bit_size=16),
}


class Training:
    """A small training with two parameter groups and a cosine schedule."""

    def __init__(self, optimizer: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
        weights = [parameter for name, parameter in self.model.named_parameters() if name.endswith("weight")]
        biases = [parameter for name, parameter in self.model.named_parameters() if name.endswith("bias")]
        self.optimizer: Any = OPTIMIZERS[optimizer]([{"params": weights}, {"params": biases, "weight_decay": 0.0}])
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    @property
    def state(self) -> TrainingState:
        return TrainingState(self.optimizer, self.scheduler, parameter_names(self.model, self.optimizer))

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            noise = torch.randn(8, 64) * random.random() + float(np.random.rand())
            self.model(noise).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    whole = Training(optimizer)
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(5)
    whole.steps(3)
    whole.state.save(tmp_path, {"step": 3, "loss": 0.1})
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.steps(4)

    resumed = Training(optimizer)
    resumed.model.load_state_dict(weights)
    random.random(), np.random.rand(), torch.rand(3)
    resumed.state.load(tmp_path)
    load_generators(tmp_path)
    resumed.steps(4)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert whole.scheduler.state_dict() == resumed.scheduler.state_dict()
    assert load_values(tmp_path) == {"step": 3, "loss": 0.1}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([TENSORS_FILE, VALUES_FILE])


def test_a_training_without_one_of_its_states_would_differ(tmp_path: Path) -> None:
    """The test above can fail: fresh moments or other generators give other weights."""
    whole = Training("adamw")
    whole.steps(3)
    whole.state.save(tmp_path, {})
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.steps(2)
    for forget in ("moments", "generators"):
        other = Training("adamw")
        other.model.load_state_dict(weights)
        if forget != "moments":
            other.state.load(tmp_path)
        if forget != "generators":
            load_generators(tmp_path)
        other.steps(2)
        assert not torch.equal(other.model[0].weight, whole.model[0].weight), forget


def test_state_goes_to_its_parameter_by_name(tmp_path: Path) -> None:
    saved = Training("adamw")
    saved.steps(1)
    saved.state.save(tmp_path, {})
    other = Training("adamw")
    names = parameter_names(other.model, other.optimizer)
    with pytest.raises(UserError, match="that of other parameters: in another order"):
        TrainingState(other.optimizer, other.scheduler, tuple(reversed(names))).load(tmp_path)
    with pytest.raises(UserError, match=r"that of other parameters: 0\.bias"):
        TrainingState(other.optimizer, other.scheduler, ("new", *names[:2], names[3])).load(tmp_path)


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    training = Training("adamw")
    with pytest.raises(ValueError, match="JSON"):
        training.state.save(tmp_path, {"loss": float("nan")})


def test_every_generator_comes_back(tmp_path: Path) -> None:
    training = Training("adamw")
    random.gauss(0, 1), np.random.standard_normal()  # each leaves half of a pair behind
    training.state.save(tmp_path, {})
    drawn = [(random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(1))) for _ in range(3)]
    load_generators(tmp_path)
    assert drawn == [(random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(1))) for _ in range(3)]
    assert set(json.loads((tmp_path / VALUES_FILE).read_text())["random"]) >= {"python", "numpy", "torch"}
