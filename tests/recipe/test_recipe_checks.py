"""Keys that are valid alone and not together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aria_finetune.recipe.checks import Conflict, conflicts
from aria_finetune.recipe.schema import Recipe

EVAL = {"eval": "e.jsonl"}


def found(
    model: dict[str, Any], data: dict[str, Any], train: dict[str, Any], moe: dict[str, Any] | None = None
) -> list[Conflict]:
    written = {"model": {"path": "tiny", **model}, "data": {"train": "rows.jsonl", **data}, "train": train, "moe": moe}
    return list(conflicts(Recipe.from_data(written, Path("recipe.yaml"))))


@pytest.mark.parametrize(
    ("model", "data", "train", "key", "message"),
    [
        (
            {"experts": "bf16", "dtype": "float32"},
            {},
            {},
            "model.dtype",
            "float32 does not go with model.experts: bf16",
        ),
        ({"experts": "fp32", "dtype": "bfloat16"}, {}, {}, "model.dtype", "write float32, or leave dtype out"),
        (
            {"experts": "bf16", "lm_head": "nf4"},
            {},
            {},
            "model.lm_head",
            "nf4 needs model.experts: nf4, and it is bf16",
        ),
        (
            {},
            {},
            {"activation_offloading": True, "gradient_checkpointing": False},
            "train.activation_offloading",
            "set train.gradient_checkpointing to true",
        ),
        ({}, {**EVAL, "eval_fraction": 0.1}, {}, "data.eval_fraction", "can't stand beside data.eval"),
        ({}, {}, {"eval_strategy": "steps"}, "train.eval_strategy", "nothing to evaluate on; add data.eval"),
        ({}, {}, {"eval_strategy": "epoch"}, "train.eval_strategy", "nothing to evaluate on; add data.eval"),
        ({}, {}, {"load_best_model_at_end": True}, "train.load_best_model_at_end", "needs data to evaluate on"),
        ({}, {}, {"evaluate_generation": 3}, "train.evaluate_generation", "needs data to evaluate on"),
        ({}, {}, {"early_stopping_patience": 3}, "train.early_stopping_patience", "needs data to evaluate on"),
        (
            {},
            EVAL,
            {"load_best_model_at_end": True, "eval_strategy": "no"},
            "train.load_best_model_at_end",
            "needs evaluations; set train.eval_strategy",
        ),
        (
            {},
            EVAL,
            {"load_best_model_at_end": True, "save_strategy": "epoch"},
            "train.load_best_model_at_end",
            "set train.save_strategy to steps",
        ),
        (
            {},
            {"eval_fraction": 0.1},
            {"load_best_model_at_end": True, "eval_strategy": "epoch"},
            "train.load_best_model_at_end",
            "set train.save_strategy to epoch",
        ),
        (
            {},
            EVAL,
            {"load_best_model_at_end": True, "eval_steps": 300},
            "train.load_best_model_at_end",
            "make train.save_steps (500) a multiple of train.eval_steps (300)",
        ),
        (
            {},
            EVAL,
            {"early_stopping_patience": 3, "eval_strategy": "no"},
            "train.early_stopping_patience",
            "needs evaluations; set train.eval_strategy",
        ),
    ],
)
def test_contradictions(
    model: dict[str, Any], data: dict[str, Any], train: dict[str, Any], key: str, message: str
) -> None:
    (conflict,) = found(model, data, train)
    assert ".".join(conflict.key) == key
    assert message in conflict.message
    assert conflict.key in conflict.reads


@pytest.mark.parametrize(
    ("model", "data", "train"),
    [
        ({"experts": "bf16", "dtype": "bfloat16"}, {}, {}),
        ({"experts": "fp32", "dtype": "float32"}, {}, {}),
        ({"experts": "nf4", "dtype": "float32"}, {}, {}),
        ({"experts": "nf4", "lm_head": "nf4"}, {}, {}),
        ({}, {}, {"eval_strategy": "no"}),
        ({"embedding": "host"}, {}, {"activation_offloading": True}),
        ({}, EVAL, {"load_best_model_at_end": True}),
        ({}, EVAL, {"load_best_model_at_end": True, "eval_steps": 250, "early_stopping_patience": 2}),
        ({}, EVAL, {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}),
        ({}, EVAL, {"early_stopping_patience": 2, "save_strategy": "no"}),
        ({}, EVAL, {"evaluate_generation": 4, "max_new_tokens": 8}),
    ],
)
def test_what_goes_together(model: dict[str, Any], data: dict[str, Any], train: dict[str, Any]) -> None:
    assert found(model, data, train) == []


def test_two_contradictions_are_both_found() -> None:
    keys = [
        conflict.key for conflict in found({"experts": "fp32", "dtype": "bfloat16"}, {}, {"eval_strategy": "epoch"})
    ]
    assert keys == [("model", "dtype"), ("train", "eval_strategy")]


def test_some_experts_at_a_time_are_computed_by_one_implementation() -> None:
    for implementation in ("auto", "grouped"):
        assert found({}, {}, {}, {"experts_at_a_time": 8, "implementation": implementation}) == []
    for implementation in ("lean", "grouped_mm", "eager"):
        (conflict,) = found({}, {}, {}, {"experts_at_a_time": 8, "implementation": implementation})
        assert conflict.key == ("moe", "experts_at_a_time")
        assert f"moe.implementation is {implementation}" in conflict.message


def test_experts_in_host_memory_are_nf4_and_not_unpacked_by_others() -> None:
    host = {"experts_on": "host"}
    for implementation in ("auto", "lean", "grouped"):
        assert found({}, {}, {}, {**host, "implementation": implementation}) == []
    for implementation in ("grouped_mm", "eager"):
        (conflict,) = found({}, {}, {}, {**host, "implementation": implementation})
        assert conflict.key == ("moe", "implementation")
        assert f"{implementation} takes all experts of a layer at once" in conflict.message
    both = found({"experts": "bf16"}, {}, {}, {**host, "implementation": "eager"})
    assert [conflict.key for conflict in both] == [("moe", "experts_on"), ("moe", "implementation")]
    assert "host needs model.experts: nf4, and it is bf16" in both[0].message


@pytest.mark.parametrize("key", ["balance_loss", "z_loss"])
def test_losses_of_a_router_that_is_not_trained_are_refused(key: str) -> None:
    recipe = Recipe.model_validate(
        {"model": {"path": "tiny"}, "data": {"train": "x"}, "lora": {"targets": ["attention"]}, "moe": {key: 0.1}}
    )
    (conflict,) = conflicts(recipe)
    assert conflict.key == ("moe", key)
    assert "lora.targets leaves out" in conflict.message
    assert found({}, {}, {}, {key: 0.1}) == []


@pytest.mark.parametrize(
    ("targets", "left"),
    [
        (("attention", "router"), "attention"),
        (("router",), "attention"),
        (("shared_experts", "router"), "shared_experts"),
    ],
)
def test_dora_is_refused_where_weights_are_no_linears(targets: tuple[str, ...], left: str) -> None:
    lora = {"targets": list(targets), "dora": True}
    (conflict,) = conflicts(Recipe.model_validate({"model": {"path": "tiny"}, "data": {"train": "x"}, "lora": lora}))
    assert conflict.key == ("lora", "dora")
    assert "no DoRA for the bare weights of router" in conflict.message
    assert f"write lora.targets: [{left}], or leave dora out" in conflict.message


def test_dora_goes_with_linears() -> None:
    lora = {"targets": ["attention", "shared_experts"], "dora": True}
    recipe = Recipe.model_validate({"model": {"path": "tiny"}, "data": {"train": "x"}, "lora": lora})
    assert not list(conflicts(recipe))


@pytest.mark.parametrize(
    ("model", "lora", "said"),
    [
        ({"experts": "bf16"}, {}, "makes up for what packing lost, and model.experts is bf16"),
        ({}, {"dora": True, "targets": ["attention"]}, "which DoRA's magnitudes would not survive"),
        ({}, {"targets": ["router"]}, "starts from the packed linears of attention and shared_experts"),
        ({}, {"targets": ["attention", "experts"]}, "with one of them and without experts"),
    ],
)
def test_what_loftq_does_not_go_with(model: dict[str, str], lora: dict[str, object], said: str) -> None:
    written = {"model": {"path": "tiny", **model}, "data": {"train": "x"}, "lora": {"init": "loftq", **lora}}
    (conflict,) = conflicts(Recipe.model_validate(written))
    assert conflict.key == ("lora", "init")
    assert said in conflict.message


def test_loftq_goes_with_the_default_targets() -> None:
    written = {"model": {"path": "tiny"}, "data": {"train": "x"}, "lora": {"init": "loftq"}}
    assert not list(conflicts(Recipe.model_validate(written)))


def test_layers_are_of_the_decoder() -> None:
    def recipe(*targets: str) -> Recipe:
        lora = {"targets": list(targets), "layers": [0]}
        return Recipe.model_validate({"model": {"path": "tiny"}, "data": {"train": "x"}, "lora": lora})

    (conflict,) = conflicts(recipe("projector", "vision"))
    assert conflict.key == ("lora", "layers")
    assert "projector and vision in lora.targets are not in it" in conflict.message
    assert list(conflicts(recipe("attention", "vision"))) == []


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_adapters_of_experts_need_a_way_to_compute_that_knows_them(implementation: str) -> None:
    def recipe(targets: list[str], implementation: str) -> Recipe:
        data = {"model": {"path": "tiny"}, "data": {"train": "x"}, "lora": {"targets": targets}}
        return Recipe.model_validate(data | {"moe": {"implementation": implementation}})

    (conflict,) = conflicts(recipe(["experts", "router"], implementation))
    assert conflict.key == ("moe", "implementation")
    assert "W + delta" in conflict.message
    assert list(conflicts(recipe(["attention", "router", "shared_experts"], implementation))) == []
    for other in ("auto", "lean", "grouped"):
        assert list(conflicts(recipe(["experts", "router"], other))) == []
