"""Held-out rows answered while a run goes on: by the model as it is, without a bit of training changed."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_values import metrics, steady_metrics
from stopping import stop_at

from aria_finetune.data.dataset import RowSet
from aria_finetune.data.rows import as_prompt
from aria_finetune.errors import UserError
from aria_finetune.generation import generate_answers
from aria_finetune.interruption import Interrupted, Interruption
from aria_finetune.material import build_collator, load_base, prepare
from aria_finetune.metrics import METRICS, row_of
from aria_finetune.model.lora import load_adapter
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.trainer.answers import AnswerCheck, choose_questions
from aria_finetune.training import dry_run, train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
RECIPE = """
model: {{path: tiny, device: cpu, experts: fp32}}
data:
  train:
    - {{path: {data}/photos.json}}
    - {{path: {data}/chat.jsonl}}
  eval:
    - {{path: {data}/chat.jsonl}}
    - {{path: {data}/photos.json}}
  image_size: 490
  max_tokens: 1024
lora: {{dropout: 0.2}}
train:
  learning_rate: 2e-2
  max_steps: 4
  per_device_train_batch_size: 1
  per_device_eval_batch_size: 2
  gradient_accumulation_steps: 2
  dataloader_num_workers: 0
  neftune_noise_alpha: 5
  eval_steps: 2
  save_steps: 2
  save_total_limit: 9
  evaluate_generation: 4
  max_new_tokens: 12
output: {{dir: {output}}}
"""


def answers(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]


def adapter_of(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    def make(*overrides: str, name: str = "run") -> Recipe:
        file = tmp_path / f"{name}.yaml"
        file.write_text(RECIPE.format(data=DATA, output=tmp_path / "runs" / name))
        return load_recipe(file, overrides)

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("answered")
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(data=DATA, output=folder / "run"))
    return train(load_recipe(file, []), Console(file=io.StringIO()))


def test_training_is_what_it_is_without(recipe_of: Callable[..., Recipe], whole: Path) -> None:
    silent = train(recipe_of("train.evaluate_generation=0"), Console(file=io.StringIO()))
    assert not (silent / "answers.jsonl").exists()
    assert adapter_of(silent) == adapter_of(whole)
    scores = {f"eval_{name}" for name in METRICS}
    kept = [{key: value for key, value in line.items() if key not in scores} for line in steady_metrics(whole)]
    assert kept == steady_metrics(silent)


def test_the_same_rows_are_answered_by_the_model_as_it_is(
    recipe_of: Callable[..., Recipe], whole: Path, tmp_path: Path
) -> None:
    """Each checkpoint, loaded for itself, gives the answers that were kept after its step."""
    found = answers(whole)
    asked = {step: [line["id"] for line in found if line["step"] == step] for step in (2, 4)}
    assert [line["step"] for line in found] == [2] * 4 + [4] * 4
    assert asked[2] == asked[4]
    assert len(set(asked[2])) == 4
    assert [line["answer"] for line in found[:4]] != [line["answer"] for line in found[4:]]
    recipe = recipe_of()
    material = prepare(recipe, tmp_path / "media")
    plans = {plan.record.id: plan for plan in material.eval_rows.plans}
    chosen = [as_prompt(plans[name], material.chat) for name in asked[2]]
    assert any(plan.sights for plan in chosen)
    assert any(not plan.sights for plan in chosen)
    prompts = replace(material, train_rows=RowSet(), eval_rows=RowSet(chosen))
    for step in (2, 4):
        base = load_base(recipe).model.eval()
        model = load_adapter(base, str(whole / f"checkpoint-{step}")).eval()
        collator = build_collator(recipe, prompts, generation=True)
        due = generate_answers(model, collator, base=base, chat=material.chat, max_new_tokens=12, batch_size=2)
        lines = [line for line in found if line["step"] == step]
        assert [(line["answer"], line["stop"] == "length") for line in lines] == [(one.text, one.cut) for one in due]
        logged = next(line for line in metrics(whole) if line["step"] == step and "eval_loss" in line)
        for name in {line["metric"] for line in lines}:
            scores = [line["score"] for line in lines if line["metric"] == name]
            assert logged[f"eval_{name}"] == sum(scores) / len(scores)
        last = json.loads((whole / "run.json").read_text())["scores"]
        assert step == 2 or all(logged[f"eval_{name}"] == mean for name, mean in last.items())
        for line in lines:
            row = row_of(plans[line["id"]].record)
            assert line["expected"] == list(row.expected)
            assert line["score"] == METRICS[line["metric"]].score(row, line["answer"]).value


def test_a_run_that_is_stopped_goes_on_bit_for_bit(
    recipe_of: Callable[..., Recipe], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in training, between the evaluations; then while it answers."""
    recipe = recipe_of()
    stop_at(monkeypatch, recipe, 6)
    interruption, run_check = Interruption(), AnswerCheck.run

    def check(self: AnswerCheck, model: Any, base: Any, step: int, wanted: Callable[[], bool]) -> Any:
        def asked() -> bool:
            counted.append(True)
            if len(counted) == 3:
                interruption.asked = signal.SIGTERM
            return wanted()

        counted: list[bool] = []
        return run_check(self, model, base, step, asked)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerCheck, "run", check)
        with pytest.raises(Interrupted):
            train(recipe, Console(file=io.StringIO()), resume=True, interruption=interruption)
    assert [line["step"] for line in answers(recipe.output_dir)] == [2] * 4
    run = train(recipe, Console(file=io.StringIO()), resume=True)
    assert adapter_of(run) == adapter_of(whole)
    assert steady_metrics(run) == steady_metrics(whole)
    assert answers(run) == answers(whole)


def test_stored_features_give_the_same_answers(recipe_of: Callable[..., Recipe], whole: Path) -> None:
    """The tower is not even loaded then; and rows go one by one, unpacked, without checkpointing."""
    recipe = recipe_of(
        "data.cache_image_features=true",
        "data.packing=false",
        "train.gradient_checkpointing=false",
        "train.max_steps=2",
    )
    run = train(recipe, Console(file=io.StringIO()))
    assert [line["id"] for line in answers(run)] == [line["id"] for line in answers(whole)[:4]]
    same = [mine["answer"] == other["answer"] for mine, other in zip(answers(run), answers(whole)[:4], strict=True)]
    assert all(same)


def test_a_row_that_can_t_be_shown_is_told(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for photo in (DATA / "photos").iterdir():
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes()[:3000])  # headers are whole
    shutil.copy(DATA / "photos.json", tmp_path / "photos.json")
    source = tmp_path / "photos.json"
    recipe = recipe_of(
        f"data.eval=[{source}, {DATA}/chat.jsonl]", "data.on_bad_media=skip", "train.max_steps=1", "train.eval_steps=1",
        "train.evaluate_generation=99",
    )  # fmt: skip
    said = io.StringIO()
    found = answers(train(recipe, Console(file=said, width=200)))
    assert {("refused" in line) for line in found if line["id"].startswith("llava")} == {True}
    assert any("media_unreadable" in line["refused"] for line in found if "refused" in line)
    assert any("score" in line for line in found)
    assert f"train.evaluate_generation is 99; {len(found)} held-out rows have an answer" in said.getvalue()


def test_what_can_t_be_scored_is_refused_before_weights_are_loaded(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of()
    material = prepare(recipe, tmp_path / "media")
    plans = [
        replace(plan, record=replace(plan.record, messages=plan.record.messages[:-1]))
        for plan in material.eval_rows.plans
    ]
    with pytest.raises(UserError, match="no held-out row has a known answer"):
        choose_questions(plans, 3, 0, lambda plan: plan, 0)
    dry_run(recipe, Console(file=io.StringIO()))
    with pytest.raises(UserError, match="needs data to evaluate on"):
        recipe_of("data.eval=[]")
