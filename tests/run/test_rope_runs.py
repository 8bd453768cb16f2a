"""Runs on the tiny Aria as if it were the 8K base: what they are made for, what they say, what goes on and what does not."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from aria_finetune.adapter.merge import merge
from aria_finetune.errors import UserError
from aria_finetune.evaluation import EvaluationOptions, evaluate
from aria_finetune.model.rope import ROPE_FILE, Rope
from aria_finetune.planning import Machine, make_plan
from aria_finetune.recipe import Recipe
from aria_finetune.training import dry_run, train

LONG = ("model.rope_theta=5000000", "data.max_tokens=16384")
EVAL = "data.eval=[{path: %s}]"
DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base-8k"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 100_000.0
    config["text_config"]["max_position_embeddings"] = 8192
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def recipe_of(make_recipe: Callable[..., Recipe], base: Path) -> Callable[..., Recipe]:
    few = f"data.train=[{{path: {DATA / 'chat.jsonl'}}}]"
    settings = (f"model.path={base}", few, "train.max_steps=2", "train.save_strategy=steps", "train.save_steps=1")
    return lambda *overrides: make_recipe(*settings, *overrides)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize("overrides", [("data.max_tokens=8193",), ("data.max_tokens=16384", "model.rope_theta=100000")])
def test_rows_beyond_what_the_model_is_made_for_are_refused_with_the_key(
    recipe_of: Callable[..., Recipe], overrides: tuple[str, ...]
) -> None:
    recipe = recipe_of(*overrides)
    for begin in (
        lambda: dry_run(recipe, quiet()),
        lambda: train(recipe, quiet()),
        lambda: make_plan(recipe, Machine("cuda", "a GPU", 24 * 2**30)),
    ):
        with pytest.raises(UserError, match="the model is made for 8192") as caught:
            begin()
        assert "model.rope_theta above 100000" in (caught.value.fix or "")
        assert "data.max_tokens=8192" in (caught.value.fix or "")
    assert not recipe.output_dir.exists()
    dry_run(recipe_of("data.max_tokens=8192"), quiet())


def test_a_run_with_another_base_says_so_everywhere_and_only_goes_on_with_it(
    recipe_of: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    run = train(recipe_of(*LONG), quiet())
    due = {"theta": 5e6, "positions": 16_384}
    described = json.loads((run / "run.json").read_text())
    assert described["recipe"]["model"]["rope_theta"] == 5e6
    assert described["rope"] == due
    for folder in (run / "adapter", run / "checkpoint-1"):
        assert json.loads((folder / ROPE_FILE).read_text()) == due
    merge(run / "adapter", tmp_path / "merged")
    assert Rope.of(json.loads((tmp_path / "merged" / "config.json").read_text())) == Rope(**due)

    held = EVAL % (DATA / "warmth-eval.jsonl")
    options = EvaluationOptions(adapter=run / "adapter", max_new_tokens=1, batch_size=64)
    with pytest.raises(UserError, match="trained with a RoPE base of 5000000, and the model has 100000"):
        evaluate(recipe_of(held), tmp_path / "evaluation", options, quiet())
    assert not (tmp_path / "evaluation").exists()
    assert evaluate(recipe_of(held, *LONG), tmp_path / "evaluation", options, quiet())["rows"] == 64

    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoint-2")
    (run / "run.json").write_text(json.dumps(described | {"status": "stopped"}))
    with pytest.raises(UserError, match=r"model\.rope_theta was 5000000\.0 and is 1000000\.0"):
        train(recipe_of("model.rope_theta=1000000", "data.max_tokens=16384"), quiet(), resume=True)
    train(recipe_of(*LONG), quiet(), resume=True)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_another_config_json_is_another_base(recipe_of: Callable[..., Recipe], base: Path) -> None:
    run = train(recipe_of(), quiet())
    described = json.loads((run / "run.json").read_text())
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoint-2")
    (run / "run.json").write_text(json.dumps(described | {"status": "stopped"}))
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config.replace("100000.0", "200000.0"))
    with pytest.raises(UserError, match="its RoPE base are not those"):
        train(recipe_of(), quiet(), resume=True)
