"""Runs whose parts are held so as to take less of a card: the same numbers as without, and the parts where they should be."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from rich.console import Console
from run_values import steady_metrics
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from aria_finetune.evaluation import EvaluationOptions, evaluate
from aria_finetune.material import load_base, prepare
from aria_finetune.model import head_loss
from aria_finetune.model.loading import load_model
from aria_finetune.model.nf4 import expert_state, quantize_linear
from aria_finetune.progress import ProgressReport
from aria_finetune.quantization import quantize
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import open_run_folder
from aria_finetune.tiny import CHECKPOINT
from aria_finetune.trainer import AriaTrainer
from aria_finetune.training import build_model, build_trainer, train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
VOCABULARY = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]["vocab_size"]
MakeRecipe = Callable[..., Recipe]
Start = Callable[[Recipe], AriaTrainer]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """The trainer of a recipe, ready to train."""

    def make(recipe: Recipe) -> AriaTrainer:
        with open_run_folder(recipe.output_dir, overwrite=False) as run:
            material = prepare(recipe, tmp_path / "store")
            model, _ = build_model(recipe, run, material)
            run.began = True
            return build_trainer(recipe, run, material, model, ProgressReport(run, Console(quiet=True)))

    return make


def logged(trainer: AriaTrainer) -> list[dict[str, Any]]:
    """What was logged of steps and evaluations, but for what a clock or a meter gave."""
    timed = ("per_second", "runtime", "seconds", "memory", "wait", "total_flos", "train_loss")
    entries = [
        {k: v for k, v in entry.items() if not any(t in k for t in timed)} for entry in trainer.state.log_history
    ]
    return [entry for entry in entries if "loss" in entry or "eval_loss" in entry]


# The head in NF4


def with_dequantised_head(trainer: AriaTrainer) -> AriaTrainer:
    """A dense head of the values that NF4 would stand for."""
    head = trainer.model.get_base_model().lm_head
    head.weight = nn.Parameter(dequantize_4bit(*quantize_linear(head.weight.data)), requires_grad=False)
    return trainer


@pytest.fixture
def train_by_trl(start: Start, monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe, bool], AriaTrainer]:
    """Trains by a recipe with a dense head, whose labels TRL's own fused head scores; the head may be rounded to NF4."""

    def make(recipe: Recipe, rounded: bool) -> AriaTrainer:
        trainer = start(recipe)
        if rounded:
            with_dequantised_head(trainer)
        with monkeypatch.context() as patch:
            patch.setattr("aria_finetune.trainer.aria.ScoredHeadModel", lambda model, *_: model)
            trainer.train()
        return trainer

    return make


@pytest.mark.parametrize("lm_head", ["dense", "nf4"])
def test_training_logs_what_trl_logs_for_the_same_head(
    lm_head: str, make_recipe: MakeRecipe, start: Start, train_by_trl: Callable[[Recipe, bool], AriaTrainer]
) -> None:
    """Losses, entropies and accuracies within 1e-5, all else equal; accumulation and evaluation included."""
    settings = (
        "model.dtype=float32",
        "train.max_steps=4",
        f"data.eval={DATA}/chat.jsonl",
        "train.eval_steps=2",
        "train.eval_strategy=steps",
    )
    found, due = start(make_recipe(*settings, f"model.lm_head={lm_head}")), make_recipe(*settings, name="trl")
    found.train()
    theirs = train_by_trl(due, lm_head == "nf4")
    assert [sorted(entry) for entry in logged(found)] == [sorted(entry) for entry in logged(theirs)]
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm"} <= set(logged(found)[0])
    assert {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"} <= set(logged(found)[2])
    for entry, expected in zip(logged(found), logged(theirs), strict=True):
        assert entry == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("lm_head", ["dense", "nf4"])
def test_under_autocast_it_is_close(
    lm_head: str, make_recipe: MakeRecipe, start: Start, train_by_trl: Callable[[Recipe, bool], AriaTrainer]
) -> None:
    """In bf16 TRL rounds its logits, and we don't."""
    found = start(make_recipe("train.max_steps=2", f"model.lm_head={lm_head}"))
    found.train()
    due = train_by_trl(make_recipe("train.max_steps=2", name="trl"), lm_head == "nf4")
    for ours, theirs in zip(logged(found), logged(due), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-2)


class Rows(TorchDispatchMode):
    """Keeps the most rows that any floating tensor with a last dimension of some size was made with; views are not made."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.most = dict.fromkeys(sizes, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        there = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            made = isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in there
            if made and tensor.dim() > 1 and tensor.is_floating_point():
                size = tensor.shape[-1]
                if size in self.most:
                    self.most[size] = max(self.most[size], tensor.numel() // size)
        return result


@pytest.mark.parametrize(("lm_head", "by_trl"), [("dense", False), ("nf4", False), ("dense", True)])
def test_only_labels_are_scored_by_some_rows_of_the_head_at_a_time(
    lm_head: str,
    by_trl: bool,
    make_recipe: MakeRecipe,
    start: Start,
    train_by_trl: Callable[[Recipe, bool], AriaTrainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That it sees it is shown by TRL, which on a CPU scores every position, this vocabulary at once."""
    monkeypatch.setattr(head_loss, "SLICE_ROWS", 97)
    recipe = make_recipe("train.max_steps=1", "train.gradient_accumulation_steps=1", f"model.lm_head={lm_head}")
    with Rows((97, VOCABULARY)) as rows:
        if by_trl:
            trainer = train_by_trl(recipe, False)
        else:
            trainer = start(recipe)
            trainer.train()
    tokens, labels = trainer.seen["tokens"], trainer.seen["labels"]
    assert 0 < labels < tokens / 2
    if by_trl:
        assert rows.most[VOCABULARY] > tokens / 2
    else:
        assert rows.most == {97: labels, VOCABULARY: 0}


def test_a_whole_run_with_an_nf4_head_and_its_evaluation(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        "model.lm_head=nf4", "train.max_steps=2", f"data.eval={DATA}/warmth-eval.jsonl", "train.eval_strategy=no"
    )
    run = train(recipe, Console(quiet=True))
    report = json.loads((run / "run.json").read_text())
    assert {part["name"]: part["dtype"] for part in report["components"]}["lm_head"] == "nf4"
    assert report["recipe"]["model"]["lm_head"] == "nf4"
    result = evaluate(
        recipe,
        tmp_path / "evaluation",
        EvaluationOptions(adapter=run / "adapter", max_new_tokens=3),
        Console(quiet=True),
    )
    assert result["rows"] > 0


def test_an_nf4_head_is_the_same_from_a_checkpoint_quantised_before(
    make_recipe: MakeRecipe, tmp_path: Path, tiny_folder: Path
) -> None:
    quantize(str(tiny_folder), tmp_path / "nf4")
    ids = torch.randint(10, 700, (2, 30), generator=torch.Generator().manual_seed(0))
    logits = []
    for path in (tiny_folder, tmp_path / "nf4"):
        model = load_base(make_recipe("model.lm_head=nf4", f"model.path={path}", "model.dtype=float32")).model
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], load_model(str(tiny_folder), dtype=torch.float32).model(input_ids=ids).logits)


# Experts in host memory


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(run / "adapter" / "adapter_model.safetensors")
    return weights


@pytest.fixture
def plain(make_recipe: MakeRecipe) -> Path:
    """A run of three steps with everything on the device."""
    return train(make_recipe("train.max_steps=3", name="plain"), Console(quiet=True))


def test_experts_on_the_host_change_no_bit_of_a_run(make_recipe: MakeRecipe, plain: Path) -> None:
    said = io.StringIO()
    run = train(make_recipe("train.max_steps=3", "moe.experts_on=host"), Console(file=said, width=120))
    assert steady_metrics(run) == steady_metrics(plain)
    due = adapter_of(plain)
    assert all(torch.equal(weight, due[name]) for name, weight in adapter_of(run).items())
    homes = {part["name"]: part["home"] for part in json.loads((run / "run.json").read_text())["components"]}
    assert homes["routed experts"] == "host"
    assert homes["expert buffers"] == homes["attention"] == "device"
    assert "routed experts (host)" in said.getvalue()
    assert "total (host)" in said.getvalue()


def test_a_run_goes_on_with_its_experts_elsewhere(make_recipe: MakeRecipe, plain: Path) -> None:
    sealed = ("train.save_strategy=steps", "train.save_steps=1")
    recipe = make_recipe("train.max_steps=3", *sealed)
    run = train(recipe, Console(quiet=True))
    for name in ("adapter", "checkpoint-3"):
        shutil.rmtree(run / name)
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | {"status": "stopped"}))
    train(make_recipe("train.max_steps=3", *sealed, "moe.experts_on=host"), Console(quiet=True), resume=True)
    assert json.loads((run / "run.json").read_text())["resumed_from_step"] == 2
    due = adapter_of(plain)
    assert all(torch.equal(weight, due[name]) for name, weight in adapter_of(run).items())


def test_generation_with_experts_and_embedding_on_the_host(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    said = []
    for home in ("device", "host"):
        recipe = make_recipe(
            f"moe.experts_on={home}", f"model.embedding={home}", f"data.eval={DATA}/warmth-eval.jsonl", name=home
        )
        evaluate(recipe, tmp_path / home, EvaluationOptions(max_new_tokens=4), Console(quiet=True))
        said.append((tmp_path / home / "predictions.jsonl").read_text())
    assert said[0] == said[1]


# The embedding in host memory


def test_an_embedding_on_the_host_changes_no_bit_of_a_run(make_recipe: MakeRecipe, plain: Path) -> None:
    """With gradient checkpointing, which needs a gradient of what is looked up."""
    run = train(make_recipe("train.max_steps=3", "model.embedding=host"), Console(quiet=True))
    assert steady_metrics(run) == steady_metrics(plain)
    due = adapter_of(plain)
    assert all(torch.equal(weight, due[name]) for name, weight in adapter_of(run).items())
    homes = {part["name"]: part["home"] for part in json.loads((run / "run.json").read_text())["components"]}
    assert [name for name, home in homes.items() if home == "host"] == ["embedding"]


def test_the_trainer_does_not_move_the_embedding(make_recipe: MakeRecipe, start: Start) -> None:
    """What moves a model is `to`, of the Trainer when it is made and of accelerate when it begins; meta stands for a device."""
    trainer = start(make_recipe("model.embedding=host", "model.experts=fp32"))
    aria = trainer.model.get_base_model()
    before = aria.get_input_embeddings().weight.clone()
    trainer._move_model_to_device(trainer.model, torch.device("meta"))
    assert trainer.model.device.type == "meta"
    assert torch.equal(aria.get_input_embeddings().weight, before)
    elsewhere = {name for name, weight in aria.named_parameters() if weight.device.type != "meta"}
    assert elsewhere == {"model.language_model.embed_tokens.weight"}


def test_the_trainer_can_not_move_the_experts(make_recipe: MakeRecipe, start: Start) -> None:
    """A move reaches parameters and buffers, of which they are none. (bitsandbytes refuses to move others to meta.)"""
    aria = start(make_recipe("moe.experts_on=host")).model.get_base_model()
    for layer in aria.model.language_model.layers:
        assert not list(layer.mlp.experts.parameters())
        assert not list(layer.mlp.experts.buffers())
        assert expert_state(layer.mlp.experts, "down_proj") is not None


# Inputs of layers in host memory


def test_offloaded_inputs_change_no_bit_of_a_run(make_recipe: MakeRecipe, plain: Path) -> None:
    run = train(make_recipe("train.max_steps=3", "train.activation_offloading=true"), Console(quiet=True))
    assert steady_metrics(run) == steady_metrics(plain)
    due = adapter_of(plain)
    assert all(torch.equal(weight, due[name]) for name, weight in adapter_of(run).items())


def test_all_of_them_together_are_the_nf4_head_alone(make_recipe: MakeRecipe) -> None:
    small = ("model.embedding=host", "moe.experts_on=host", "train.activation_offloading=true")
    head = ("train.max_steps=2", "model.lm_head=nf4")
    alone = train(make_recipe(*head, name="alone"), Console(quiet=True))
    together = train(make_recipe(*head, *small, name="together"), Console(quiet=True))
    assert steady_metrics(together) == steady_metrics(alone)
    due = adapter_of(alone)
    assert all(torch.equal(weight, due[name]) for name, weight in adapter_of(together).items())
