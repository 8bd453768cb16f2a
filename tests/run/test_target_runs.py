"""Runs on every target: what is trained is saved, goes on bit for bit after a stop, merges exactly and is evaluated."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from run_values import steady_metrics
from safetensors.torch import load_file
from stopping import stop_at
from transformers import AriaForConditionalGeneration
from whole_models import measure_drift

from aria_finetune.adapter.files import open_adapter
from aria_finetune.adapter.merge import merge
from aria_finetune.errors import UserError
from aria_finetune.evaluation import EvaluationOptions, evaluate
from aria_finetune.model.lora import expected_keys
from aria_finetune.model.targets import Target
from aria_finetune.recipe import Recipe
from aria_finetune.training import dry_run, train

TARGETS: dict[str, tuple[tuple[Target, ...], range, tuple[str, ...]]] = {
    "shared experts": (("shared_experts",), range(2), ("lora.dropout=0.2",)),
    "experts": (("experts",), range(2), ()),
    "experts, grouped": (("experts",), range(2), ("moe.implementation=grouped", "moe.experts_at_a_time=7")),
    "experts on the host": (("experts",), range(2), ("moe.experts_on=host",)),
    "one layer": (("attention", "router", "shared_experts", "experts"), range(1, 2), ("lora.layers=[-1]",)),
    "everything": (("attention", "router", "shared_experts", "experts"), range(2), ("lora.dropout=0.2",)),
}
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.mark.parametrize("name", TARGETS)
def test_a_run(
    name: str,
    make_recipe: Callable[..., Recipe],
    fp32_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    targets, layers, overrides = TARGETS[name]
    overrides = (f"lora.targets=[{','.join(targets)}]", "train.max_steps=4", *overrides)
    whole = train(make_recipe(*overrides, name="whole"), Console(file=io.StringIO()))
    assert set(load_file(whole / ADAPTER)) == expected_keys(layers, targets)

    stopped = make_recipe(*overrides, name="stopped")
    stop_at(monkeypatch, stopped, 3)
    went_on = train(stopped, Console(file=io.StringIO()), resume=True)
    assert steady_metrics(went_on) == steady_metrics(whole)
    assert (went_on / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()

    merge(whole / "adapter", tmp_path / "merged", base=str(fp32_folder))
    merged, base = (logits(plain(folder)) for folder in (tmp_path / "merged", fp32_folder))
    live = logits(PeftModel.from_pretrained(plain(fp32_folder), whole / "adapter").to(torch.float64))
    assert (merged - live).abs().max() < 1e-5
    assert (live - base).abs().max() > 1e-2, "the adapter does nothing"


def plain(folder: Path) -> AriaForConditionalGeneration:
    """A checkpoint in plain transformers and fp64, in which only the rounding of merged weights is left."""
    model = AriaForConditionalGeneration.from_pretrained(folder, experts_implementation={"text_config": "eager"})
    return model.to(torch.float64).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(10, 700, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def test_it_can_be_evaluated_and_its_drift_told(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe("lora.targets=[shared_experts,experts]", "train.max_steps=4", "data.eval_fraction=0.2")
    run = train(recipe, Console(file=io.StringIO()))
    assert len(open_adapter(run).pairs) == 2 * (3 + 2)
    options = EvaluationOptions(adapter=run / "adapter", max_new_tokens=1)
    report = evaluate(recipe, tmp_path / "scores", options, Console(file=io.StringIO()))
    assert {"base", "adapter"} <= set(report)
    merge(run, tmp_path / "merged")
    assert 0 < measure_drift(run, tmp_path / "merged").logit_mean < 0.1


def test_an_expert_that_never_had_a_token_is_no_error(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Its B stays zero, and the adapter as a whole has changed."""
    run = train(
        make_recipe(
            "lora.targets=[experts]",
            "train.max_steps=2",
            "train.per_device_train_batch_size=1",
            "train.gradient_accumulation_steps=1",
            "data.max_tokens=1024",
        ),
        Console(file=io.StringIO()),
    )
    still = 0
    for name, tensor in load_file(run / ADAPTER).items():
        if "lora_B" in name:
            by_expert = tensor.view(len(tensor), -1, 64).abs().amax((0, 1))
            assert by_expert.max() > 0
            still += int((by_expert == 0).sum())
    assert still > 0, "every expert had a token, and the test says nothing"
    merge(run, tmp_path / "merged")


@pytest.mark.parametrize("begin", [train, dry_run])
def test_a_layer_that_is_not_there_is_told_before_any_weight_is_loaded(
    begin: Callable[[Recipe, Console], object], make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aria_finetune.training.build_model", None)
    recipe = make_recipe("lora.layers=[0-2]")
    with pytest.raises(UserError, match="there is no layer 0-2 in a decoder of 2 layers") as caught:
        begin(recipe, Console(file=io.StringIO()))
    assert caught.value.where == f"{recipe.file}: lora.layers"


def test_a_run_does_not_go_on_with_other_layers(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, make_recipe("lora.layers=[0]"), 3)
    with pytest.raises(UserError, match=r"lora\.layers"):
        train(make_recipe("lora.layers=[1]"), Console(file=io.StringIO()), resume=True)
