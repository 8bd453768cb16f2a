"""Scores, answers, and who is asked: the rows that training never saw."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from aria_finetune.errors import UserError
from aria_finetune.evaluation import EvaluationOptions, accuracy, evaluate
from aria_finetune.generation import batches_of, generate_answers
from aria_finetune.material import build_collator, load_base, prepare, prepare_prompts
from aria_finetune.recipe import Recipe
from aria_finetune.training import train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


def test_accuracy_leaves_rows_without_a_known_answer_out() -> None:
    assert accuracy([("a",), (), ("b",)], ["a", "a", "c"]) == 0.5


def test_evaluation_writes_scores_and_answers(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(f"data.eval={DATA}/warmth-eval.jsonl", "train.max_steps=1")
    run = train(recipe, Console(file=io.StringIO()))
    output = tmp_path / "scores"
    options = EvaluationOptions(run / "adapter", blank_images=True, max_new_tokens=4, batch_size=16)
    result = evaluate(recipe, output, options, Console(file=io.StringIO()))
    assert set(result) >= {"base", "adapter", "adapter_blank"}
    assert json.loads((output / "evaluation.json").read_text()) == result
    lines = [json.loads(line) for line in (output / "predictions.jsonl").open()]
    assert len(lines) == result["rows"] == 64
    assert {line["expected"][0] for line in lines} == {"warm", "cool"}
    assert result["base"]["accuracy"] == sum(line["correct"]["base"] for line in lines) / 64
    evaluate(recipe, output, EvaluationOptions(max_new_tokens=1), Console(file=io.StringIO()))
    assert "adapter" in json.loads((output / "evaluation.json").read_text())


def test_a_long_prompt_is_answered_alone() -> None:
    """From 8,193 tokens on; a shorter one beside it would be padded by a mask of tokens by tokens."""
    assert list(batches_of([5, 3, 4, 8192, 9000, 65_536], 2)) == [[1, 2], [0, 3], [4], [5]]
    assert list(batches_of([8193, 8193], 8)) == [[0], [1]]
    assert list(batches_of([], 8)) == []


def test_no_row_is_skipped_whatever_the_recipe_says(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    picture = (DATA / "photos" / "cat.jpg").read_bytes()
    (tmp_path / "cat.jpg").write_bytes(picture[: len(picture) // 2])  # its header is whole, so it is planned
    row = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A cat."}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "images": ["cat.jpg"]}))
    recipe = make_recipe(f"data.eval={tmp_path}/rows.jsonl", "data.on_bad_media=skip", "data.media_timeout=20")
    with pytest.raises(UserError, match=r"cat\.jpg: media_unreadable"):
        evaluate(recipe, tmp_path / "scores", EvaluationOptions(), Console(file=io.StringIO()))
    assert not (tmp_path / "scores").exists()

    collator = build_collator(recipe, prepare_prompts(recipe, tmp_path / "store"), generation=True)
    assert collator.decoder.seconds == 20
    (bad,) = collator([{"row": 0}])["bad_media"]
    assert bad.where == "rows.jsonl:0"


def test_batches_and_padding_change_no_answer(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(f"data.eval=[{DATA}/photos.json, {DATA}/clip.jsonl, {DATA}/chat.jsonl]", "model.experts=fp32")
    material = prepare_prompts(recipe, tmp_path)
    base = load_base(recipe).model
    collator = build_collator(recipe, material, generation=True)
    alone, together = (
        generate_answers(base, collator, base=base, chat=material.chat, max_new_tokens=8, batch_size=size)
        for size in (1, 4)
    )
    assert len(alone) == 11
    assert alone == together


def test_held_out_rows_are_those_that_training_held_out(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe("data.eval_fraction=0.2", f"data.train=[{DATA}/warmth-train.jsonl]")
    trained = {plan.record.id for plan in prepare(recipe, tmp_path).train_rows.plans}
    asked = {plan.record.id for plan in prepare_prompts(recipe, tmp_path).eval_rows.plans}
    assert len(asked) == round(0.2 * 192)
    assert not trained & asked
    assert len(trained | asked) == 192


def test_what_evaluation_refuses(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(UserError, match="no evaluation data"):
        evaluate(make_recipe(), tmp_path / "out", EvaluationOptions(), console)
    recipe = make_recipe(f"data.eval={DATA}/chat.jsonl")
    with pytest.raises(UserError, match="adapter_config"):
        evaluate(recipe, tmp_path / "out", EvaluationOptions(tmp_path / "nowhere"), console)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--adapter"):
        evaluate(recipe, tmp_path / "out", EvaluationOptions(blank_images=True), console)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        evaluate(recipe, tmp_path / "file", EvaluationOptions(), console)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        evaluate(recipe, tmp_path / "mine", EvaluationOptions(), console)
