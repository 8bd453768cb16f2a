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
