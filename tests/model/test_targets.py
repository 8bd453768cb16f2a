"""The table of targets names weights that are there, and finds them and nothing else."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AriaForConditionalGeneration

from aria_finetune.model.targets import (
    PLACES,
    SEEING,
    Target,
    linear_pattern,
    parameter_names,
    seeing_weight_names,
    weight_names,
)
from aria_finetune.tiny.architecture import tiny_config

DECODER = [target for target in PLACES if target not in SEEING]


@pytest.fixture(scope="module")
def aria() -> AriaForConditionalGeneration:
    with torch.device("meta"):
        return AriaForConditionalGeneration(tiny_config())


@pytest.mark.parametrize("target", DECODER)
def test_every_weight_is_one_of_the_decoders(target: Target, aria: AriaForConditionalGeneration) -> None:
    names = {name for name, _ in aria.named_parameters()}
    for layer in range(2):
        assert {f"model.language_model.layers.{layer}.{name}" for name in weight_names([target])} <= names


@pytest.mark.parametrize("target", DECODER)
@pytest.mark.parametrize("layers", [None, (1,)])
def test_what_is_found_is_the_target_in_these_layers_alone(
    target: Target, layers: tuple[int, ...] | None, aria: AriaForConditionalGeneration
) -> None:
    pattern, ends = linear_pattern([target], layers), parameter_names([target], layers)
    found = {f"{name}.weight" for name, _ in aria.named_modules() if pattern and re.fullmatch(pattern, name)}
    found |= {name for name, _ in aria.named_parameters() if any(f".{name}".endswith(f".{end}") for end in ends)}
    assert found == {
        f"model.language_model.layers.{layer}.{name}"
        for layer in ((0, 1) if layers is None else layers)
        for name in weight_names([target])
    }


def test_a_layer_is_not_taken_for_one_whose_number_ends_or_begins_alike() -> None:
    pattern = linear_pattern(["attention"], (1, 20))
    assert pattern is not None
    found = [
        layer for layer in range(30) if re.fullmatch(pattern, f"model.language_model.layers.{layer}.self_attn.q_proj")
    ]
    assert found == [1, 20]
    (name,) = parameter_names(["router"], (1,))
    ends = [
        layer for layer in range(30) if f".model.language_model.layers.{layer}.mlp.router.weight".endswith(f".{name}")
    ]
    assert ends == [1]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            "projector",
            {
                f"model.multi_modal_projector.{name}"
                for name in (
                    "cross_attn.q_proj", "cross_attn.k_proj", "cross_attn.v_proj", "cross_attn.linear",
                    "feed_forward.linear_in", "feed_forward.linear_out",
                )
            },
        ),
        (
            "vision",
            {
                f"model.vision_tower.encoder.layers.{layer}.{name}"
                for layer in range(2)
                for name in (
                    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2",
                )
            },
        ),
    ],
)  # fmt: skip
def test_linears_of_tower_and_projector(target: Target, expected: set[str], aria: AriaForConditionalGeneration) -> None:
    """All there are, but for the one inside of nn.MultiheadAttention; which decoder layers are chosen does not matter."""
    linears = {
        name
        for name, module in aria.named_modules()
        if isinstance(module, torch.nn.Linear) and "multihead_attn" not in name
    }
    for layers in (None, (1,)):
        pattern = linear_pattern([target], layers)
        assert pattern is not None
        assert {name for name in linears if re.fullmatch(pattern, name)} == expected
    part = "multi_modal_projector" if target == "projector" else "vision_tower"
    assert {name for name in linears if part in name} == expected
    assert seeing_weight_names(["attention", target], range(2)) == {f"{name}.weight" for name in expected}
    assert weight_names([target]) == frozenset()
    assert parameter_names([target]) == []
    only = linear_pattern(["vision"], None, (0,))
    assert only is not None
    assert {name.split(".")[4] for name in linears if re.fullmatch(only, name)} == {"0"}
