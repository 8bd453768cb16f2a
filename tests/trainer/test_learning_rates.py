"""LoRA+: B matrices move by a learning rate of their own, with every optimizer of the recipe, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora
from aria_finetune.trainer.learning_rates import speed_up

RATIO = 16.0
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "adamw_torch": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "adamw_torch_fused": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    "adamw_8bit": lambda groups: bnb.optim.AdamW(groups, lr=1e-3, optim_bits=8),
    "paged_adamw_8bit": lambda groups: bnb.optim.AdamW(groups, lr=1e-3, optim_bits=8, is_paged=True),
}
NAMES = ("q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight", "norm.lora_B_like.weight")


def made(kind: str) -> tuple[Any, dict[str, nn.Parameter]]:
    """Two groups as the Trainer makes them: with weight decay, and without, which is empty."""
    generator = torch.Generator().manual_seed(0)
    parameters = {name: nn.Parameter(0.01 * torch.randn(80, 64, generator=generator)) for name in NAMES}
    decayed: list[Any] = list(parameters.values())
    return OPTIMIZERS[kind]([{"params": decayed, "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]), parameters


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_b_matrices_move_so_many_times_as_far_and_nothing_else_does(kind: str) -> None:
    moved = []
    for ratio in (None, RATIO):
        optimizer, parameters = made(kind)
        if ratio is not None:
            speed_up(optimizer, parameters, ratio)
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.grad = torch.sin(torch.arange(parameter.numel(), dtype=torch.float32)).view_as(parameter)
        optimizer.step()
        moved.append({name: parameter.detach() - before[name] for name, parameter in parameters.items()})
    plain, plus = moved
    slow, fast, other = NAMES
    assert torch.equal(plus[slow], plain[slow])
    assert torch.equal(plus[other], plain[other])
    assert plain[fast].abs().mean() > 1e-4
    # Weights of up to 0.04 have a last place of 4e-9 in fp32, of which up to a half is lost and taken RATIO times.
    assert (plus[fast] - RATIO * plain[fast]).abs().max() < 1e-7


def test_groups_keep_their_order_and_all_but_the_learning_rate() -> None:
    optimizer, parameters = made("adamw_torch_fused")
    before = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("params", "lr")}
    speed_up(optimizer, parameters, RATIO)
    slow, empty, fast = optimizer.param_groups
    assert [id(parameter) for parameter in slow["params"]] == [id(parameters[NAMES[0]]), id(parameters[NAMES[2]])]
    assert empty["params"] == []
    assert [id(parameter) for parameter in fast["params"]] == [id(parameters[NAMES[1]])]
    assert (slow["lr"], fast["lr"]) == (1e-3, RATIO * 1e-3)
    for group in (slow, fast):
        assert {key: value for key, value in group.items() if key not in ("params", "lr")} == before


@pytest.fixture
def model() -> PeftModel:
    return add_lora(load_model("tiny").model, LoraPlan(), base_name="tiny", seed=0)


def test_the_same_matrices_are_faster_as_in_peft(model: PeftModel) -> None:
    reference = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=RATIO)
    ours = torch.optim.AdamW([{"params": list(adapter_state(model).values())}], lr=1e-3)
    speed_up(ours, dict(model.named_parameters()), RATIO)

    def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
        return {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}

    assert rates(ours) == rates(reference)
    assert sorted(rates(ours).values()) == [1e-3] * 10 + [RATIO * 1e-3] * 10
