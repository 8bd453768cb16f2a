"""A run from the recipe to its folder: what is written, what is said, what is left after a failure."""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from run_values import steady_metrics
from safetensors.torch import load_file
from transformers import AutoProcessor

from aria_finetune.errors import UserError
from aria_finetune.material import prepare
from aria_finetune.model.lora import adapter_state
from aria_finetune.progress import ProgressReport
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import open_run_folder
from aria_finetune.trainer import AriaTrainer
from aria_finetune.training import batches_ahead, build_model, build_trainer, describe_result, dry_run, train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


def quiet() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=120), text


def test_a_run_leaves_adapter_report_metrics_and_picture(make_recipe: Callable[..., Recipe]) -> None:
    console, said = quiet()
    recipe = make_recipe(
        f"data.eval={DATA}/chat.jsonl",
        "train.max_steps=4",
        "train.save_strategy=steps",
        "train.save_steps=2",
        "train.load_best_model_at_end=true",
        "train.early_stopping_patience=5",
    )
    run = train(recipe, console)

    report = json.loads((run / "run.json").read_text())
    assert report["status"] == "finished"
    assert report["steps"] == 4
    assert report["rows"]["train"] == {
        "rows": 203, "tokens": report["rows"]["train"]["tokens"], "labels": report["rows"]["train"]["labels"],
        "images": 199, "videos": 2, "rejected": 0, "reasons": {},
    }  # fmt: skip
    assert report["seen"]["rows"] == 16
    assert report["recipe"]["train"]["eval_strategy"] == "steps"
    assert report["versions"]["torch"] == torch.__version__
    assert {part["name"]: part["dtype"] for part in report["components"]}["routed experts"] == "nf4"
    assert report["peak_memory_gib"] > 0
    assert len(report["data"]["train"][0]["sha256"]) == 64

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in metrics if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    rates = {"tokens_per_second", "images_per_second", "data_wait_share", "peak_memory_gib", "seconds_left"}
    assert all(rates <= set(entry) for entry in steps)
    assert all(0 < entry["data_wait_share"] < 1 for entry in steps)
    assert re.search(r"images/s  data +\d+%  ", said.getvalue())
    assert [entry["step"] for entry in metrics if "eval_loss" in entry] == [2, 4]
    with Image.open(run / "loss.png") as picture:
        assert min(picture.size) > 200
    assert "routed experts" in said.getvalue()
    assert str(run) in said.getvalue().replace("\n", "")
    assert (run / "rejects.jsonl").read_text() == ""

    saved = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert saved["lora_dropout"] == 0.0
    assert Path(saved["base_model_name_or_path"], "config.json").is_file()
    assert len(load_file(run / "adapter" / "adapter_model.safetensors")) == 20
    assert AutoProcessor.from_pretrained(run / "adapter").tokenizer.image_token_id == 9
    assert (run / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert not list(run.rglob("*.pt")) + list(run.rglob("*.bin")) + list(run.rglob("*.pth")), "no pickle is written"


def test_data_without_pictures_leave_the_vision_weights_unread(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for line in (DATA / "chat.jsonl").read_text().splitlines() if "image" not in line]
    assert len(lines) == 4
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    text = (f"data.train=[{{path: {tmp_path}/text.jsonl}}]", f"data.eval={tmp_path}/text.jsonl", "train.max_steps=2")
    run = train(make_recipe(*text, name="without"), quiet()[0])
    parts = {part["name"] for part in json.loads((run / "run.json").read_text())["components"]}
    assert "attention" in parts
    assert not parts & {"vision tower", "projector"}
    monkeypatch.setattr("aria_finetune.material.Material.has_pictures", property(lambda _: True))
    other = train(make_recipe(*text, name="with"), quiet()[0])
    assert {"vision tower", "projector"} < {
        part["name"] for part in json.loads((other / "run.json").read_text())["components"]
    }
    adapters = [(one / "adapter/adapter_model.safetensors").read_bytes() for one in (run, other)]
    assert adapters[0] == adapters[1]
    assert steady_metrics(run) == steady_metrics(other)


def test_the_base_of_a_tiny_run_is_named_from_the_folder_it_was_started_in(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(make_recipe("train.max_steps=1", "output.dir=runs/here"), quiet()[0])
    assert run == Path("runs/here")
    saved = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "runs/here/base"


def test_dropout_acts_in_training_only_on_attention_and_is_not_saved(make_recipe: Callable[..., Recipe]) -> None:
    run = train(make_recipe("train.max_steps=1", "lora.dropout=0.5"), quiet()[0])
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["lora_dropout"] == 0.0


def test_the_same_recipe_gives_the_same_adapter(make_recipe: Callable[..., Recipe]) -> None:
    first, second = (
        load_file(
            train(make_recipe("train.max_steps=2", name=name), quiet()[0]) / "adapter" / "adapter_model.safetensors"
        )
        for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_loader_workers_change_nothing(make_recipe: Callable[..., Recipe]) -> None:
    losses = []
    for workers in (0, 2):
        recipe = make_recipe("train.max_steps=2", f"train.dataloader_num_workers={workers}", name=f"workers-{workers}")
        metrics = (train(recipe, quiet()[0]) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in metrics if '"loss"' in line])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_no_worker_outlives_a_run(
    make_recipe: Callable[..., Recipe], ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though somebody keeps the trainer: workers ignore signals, and the process would wait for them at its end."""
    kept: list[AriaTrainer] = []

    def keep(trainer: AriaTrainer, *rest: Any) -> dict[str, Any]:
        kept.append(trainer)
        if ends == "with an error":
            raise UserError("there is no room")
        return describe_result(trainer, *rest)

    monkeypatch.setattr("aria_finetune.training.describe_result", keep)
    before = set(multiprocessing.active_children())
    workers = ("train.dataloader_num_workers=2", "train.max_steps=1", f"data.eval={DATA}/chat.jsonl")
    with nullcontext() if ends == "well" else pytest.raises(UserError, match="there is no room"):
        train(make_recipe(*workers), quiet()[0])
    assert kept
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 1), (2, 1), (2, 8), (3, 8), (4, 8), (16, 8), (2, 7)])
def test_workers_make_a_whole_step_ahead_and_little_more(workers: int, accumulation: int) -> None:
    ahead = batches_ahead(workers, accumulation)
    assert ahead is not None
    assert accumulation + workers <= ahead * workers < accumulation + 2 * workers
    assert batches_ahead(0, accumulation) is None


def test_a_dry_run_builds_a_batch_and_leaves_nothing(make_recipe: Callable[..., Recipe]) -> None:
    console, said = quiet()
    recipe = make_recipe()
    batch = dry_run(recipe, console)
    assert len(batch["rows"]) == 4, "the rows of a step lie in one"
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, batch["labels"].numel())
    assert "4 rows in one, of" in said.getvalue()
    assert "one batch" in said.getvalue()
    apart = dry_run(make_recipe("data.packing=false"), console)
    assert apart["input_ids"].shape == apart["attention_mask"].shape
    assert apart["input_ids"].shape[0] == 2
    assert "input_ids" in said.getvalue()
    assert not recipe.output_dir.exists()


def test_a_run_folder_in_use_is_refused_and_kept(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe("train.max_steps=1")
    run = train(recipe, quiet()[0])
    before = (run / "run.json").read_bytes()
    with pytest.raises(UserError, match="not empty"):
        train(recipe, quiet()[0])
    assert (run / "run.json").read_bytes() == before


def test_a_replaced_run_comes_back_when_the_new_one_never_begins(make_recipe: Callable[..., Recipe]) -> None:
    run = train(make_recipe("train.max_steps=1"), quiet()[0])
    before = (run / "run.json").read_bytes()
    with pytest.raises(UserError, match="no row is left"):
        train(make_recipe("output.overwrite=true", "data.max_tokens=16"), quiet()[0])
    assert (run / "run.json").read_bytes() == before
    assert [path.name for path in run.parent.iterdir()] == ["recipe"]


def test_a_folder_that_is_no_run_is_never_overwritten(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run"):
        train(make_recipe("output.overwrite=true", f"output.dir={precious}"), quiet()[0])
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(
        "train.learning_rate=1e30", "train.warmup_ratio=0", "train.max_grad_norm=0", "train.max_steps=8"
    )
    with pytest.raises(UserError, match=r"the loss is .* in row\(s\) \w+:\w"):
        train(recipe, quiet()[0])


def test_a_gradient_that_is_not_finite_stops_before_the_update(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe("train.max_steps=2")
    with open_run_folder(recipe.output_dir, overwrite=False) as run:
        material = prepare(recipe, run.path / "media")
        model, _ = build_model(recipe, run, material)
        run.began = True
        trainer = build_trainer(recipe, run, material, model, ProgressReport(run, quiet()[0]))
    name, parameter = next(iter(adapter_state(model).items()))
    before = parameter.detach().clone()
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"the gradient is not finite at step 1.*no update was made"):
        trainer.train()
    assert torch.equal(parameter, before), name


@pytest.mark.parametrize("dry", [False, True])
def test_a_tracker_that_is_not_installed_is_refused_at_once(make_recipe: Callable[..., Recipe], dry: bool) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    with pytest.raises(UserError, match="wandb"):
        (dry_run if dry else train)(make_recipe("train.report_to=wandb"), quiet()[0])


def test_a_dry_run_sees_that_the_run_folder_is_in_use(make_recipe: Callable[..., Recipe]) -> None:
    train(make_recipe("train.max_steps=1"), quiet()[0])
    with pytest.raises(UserError, match="not empty"):
        dry_run(make_recipe(), quiet()[0])


def test_a_pinned_revision_is_kept_in_the_adapter(make_recipe: Callable[..., Recipe]) -> None:
    run = train(make_recipe("train.max_steps=1", "model.revision=abc123"), quiet()[0])
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["revision"] == "abc123"


def test_cuda_is_refused_where_there_is_none(make_recipe: Callable[..., Recipe]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="doctor"):
        train(make_recipe("model.device=cuda"), quiet()[0])
