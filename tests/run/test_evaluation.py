"""Scores, answers, and who is asked: the rows that training never saw."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from html_pages import picture, read_page
from rich.console import Console

from aria_finetune.adapter.merge import merge
from aria_finetune.errors import UserError
from aria_finetune.evaluation import EvaluationOptions, evaluate
from aria_finetune.generation import batches_of, generate_answers
from aria_finetune.material import build_collator, load_base, prepare, prepare_prompts
from aria_finetune.recipe import Recipe
from aria_finetune.training import train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


def test_evaluation_writes_scores_answers_and_a_page(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    rows = (DATA / "warmth-eval.jsonl").read_text().splitlines()[:16]
    held = DATA.parent / "tiny"
    (tmp_path / "eval.jsonl").write_text("\n".join(rows) + "\n")
    recipe = make_recipe(
        f"data.eval=[{{path: {tmp_path}/eval.jsonl, media_root: {held}}}]", "train.max_steps=1", "model.experts=fp32"
    )
    run = train(recipe, Console(file=io.StringIO()))
    merge(run / "adapter", tmp_path / "merged")
    output, console = tmp_path / "scores", Console(file=io.StringIO(), width=200)
    options = EvaluationOptions(
        run / "adapter", blank_images=True, max_new_tokens=4, batch_size=16, merged=tmp_path / "merged"
    )
    result = evaluate(recipe, output, options, console)
    whos = ["base", "adapter", "adapter_blank", "merged"]
    assert [name for name in result if name in whos] == whos
    assert json.loads((output / "evaluation.json").read_text()) == result
    lines = [json.loads(line) for line in (output / "predictions.jsonl").open()]
    assert len(lines) == result["rows"] == result["scored"] == 16
    assert {line["expected"][0] for line in lines} == {"warm", "cool"}
    assert [line["answers"]["merged"] for line in lines] == [line["answers"]["adapter"] for line in lines]
    for who in whos:
        assert result[who]["accuracy"] == sum(line["correct"][who] for line in lines) / 16
        assert result[who]["metrics"]["exact"]["mean"] == result[who]["accuracy"]
        assert result[who]["metrics"]["exact"]["interval"][0] <= result[who]["accuracy"]
    assert set(result["differences"]) == set(whos[1:])
    assert result["differences"]["merged"] == result["differences"]["adapter"]
    page = read_page((output / "evaluation.html").read_text(encoding="utf-8"))
    assert len(page.all("article")) == 16
    assert len([picture(image) for image in page.all("img")]) == 16
    said = console.file.getvalue()
    assert [line.split()[0] for line in said.splitlines() if "of 16 right" in line] == whos

    again = evaluate(recipe, output, EvaluationOptions(max_new_tokens=1, metric="anls"), Console(file=io.StringIO()))
    assert set(again["base"]["metrics"]) == {"anls"}
    assert again["differences"] == {}
    assert "adapter" not in again
    assert again["models"] == {"base": "tiny"}


def test_no_file_of_an_evaluation_has_a_secret(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    token = "hf_" + "Ab1" * 10
    asked = {"role": "user", "content": f"Is {token} a token?"}
    row = {"id": token, "messages": [asked, {"role": "assistant", "content": f"{token} is."}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    recipe = make_recipe(f"data.eval={tmp_path}/rows.jsonl")
    evaluate(recipe, tmp_path / "out", EvaluationOptions(max_new_tokens=1), Console(quiet=True))
    (line,) = map(json.loads, (tmp_path / "out" / "predictions.jsonl").open())
    assert (line["question"], line["expected"]) == ("Is *** a token?", ["*** is."])
    assert [file for file in (tmp_path / "out").iterdir() if token in file.read_text("utf-8")] == []


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
    for nameless in (".", "..", "/"):
        with pytest.raises(UserError, match="needs a name"):
            evaluate(make_recipe(), Path(nameless), EvaluationOptions(), console)
    with pytest.raises(UserError, match="no evaluation data"):
        evaluate(make_recipe(), tmp_path / "out", EvaluationOptions(), console)
    recipe = make_recipe(f"data.eval={DATA}/chat.jsonl")
    with pytest.raises(UserError, match="adapter_config"):
        evaluate(recipe, tmp_path / "out", EvaluationOptions(tmp_path / "nowhere"), console)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--adapter"):
        evaluate(recipe, tmp_path / "out", EvaluationOptions(blank_images=True), console)
    with pytest.raises(UserError, match="did you mean anls"):
        evaluate(recipe, tmp_path / "out", EvaluationOptions(metric="anl"), console)
    with pytest.raises(UserError, match="--run-code"):
        evaluate(recipe, tmp_path / "out", EvaluationOptions(metric="code"), console)
    with pytest.raises(UserError, match="lacks what box needs"):
        evaluate(recipe, tmp_path / "out", EvaluationOptions(metric="box"), console)
    with pytest.raises(UserError, match="nowhere"):
        evaluate(recipe, tmp_path / "out", EvaluationOptions(merged=tmp_path / "nowhere"), console)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        evaluate(recipe, tmp_path / "file", EvaluationOptions(), console)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        evaluate(recipe, tmp_path / "mine", EvaluationOptions(), console)
