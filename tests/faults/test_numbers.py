"""Losses and gradients that are not finite: the run ends before the update and names the rows; spikes are passed over."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import learnt, result
from forking import Ended, Forkery
from safetensors.torch import load_file
from witness import count_updates, rows_by_step

from aria_finetune.checkpoint.retention import checkpoint_path, newest_sealed

STEPS = 3
QUICK = ("model.experts=fp32", "train.gradient_checkpointing=false")
APART = "data.packing=false"
"""A row in each micro-batch, so that a step has as many as the recipe asks for."""
NUMBERS = {"nan": math.nan, "inf": math.inf}
PLACES = {"first": 1, "middle": 2, "last": STEPS}
FEW = [("nan", "gradient", "first", 3), ("inf", "gradient", "middle", 1), ("nan", "loss", "last", 3)]
SPIKE = {"where": "gradient", "value": 1e4}


@dataclass(frozen=True)
class Setting:
    """Runs of `STEPS` steps with a checkpoint after each, by the micro-batches in a step, and one undisturbed."""

    forkery: Forkery
    recipe: Callable[[Path], Path]
    micro_batches: int
    undisturbed: Path

    def train(self, folder: Path, *options: str, **strike: Any) -> Ended:
        """Start a run in `folder`, or go on with it."""
        keys = (f"train.gradient_accumulation_steps={self.micro_batches}", "train.save_total_limit=null")
        steps = (f"train.max_steps={STEPS}", "train.save_steps=1", "train.eval_steps=2", APART)
        strike = {"record": str(folder / "record.jsonl"), **strike}
        return self.forkery.run("train", str(self.recipe(folder)), *options, *QUICK, *keys, *steps, strike=strike)


@pytest.fixture(scope="module")
def setting(
    forkery: Forkery, write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Setting]:
    made: dict[int, Setting] = {}

    def make(micro_batches: int) -> Setting:
        if micro_batches not in made:
            folder = tmp_path_factory.mktemp("sound")
            one = Setting(forkery, write_recipe, micro_batches, folder / "runs" / "run")
            assert one.train(folder).code == 0
            made[micro_batches] = one
        return made[micro_batches]

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        every = [(n, where, p, m) for n in NUMBERS for where in ("loss", "gradient") for p in PLACES for m in (1, 3)]
        soak = metafunc.config.getoption("--soak")
        metafunc.parametrize(("number", "where", "place", "micro_batches"), every if soak else FEW)


def test_a_number_that_is_not_finite_ends_the_run_before_the_update(
    setting: Callable[[int], Setting], tmp_path: Path, number: str, where: str, place: str, micro_batches: int
) -> None:
    sound, run, step = setting(micro_batches), tmp_path / "runs" / "run", PLACES[place]
    micro = (micro_batches + 1) // 2
    poison = {"where": where, "steps": [step], "value": NUMBERS[number], "micro": micro}
    ended = sound.train(tmp_path, poison=poison)
    assert ended.code == 2, ended.said

    trained = rows_by_step(tmp_path / "record.jsonl")
    assert max(trained) == step
    assert count_updates(tmp_path / "record.jsonl") == step - 1
    if where == "loss":
        assert f"error: the loss is {number} at step {step}, in row(s) {trained[step][micro - 1]};" in ended.said
        assert len(trained[step]) == micro, "it went on with the step"
    else:
        rows = ", ".join(dict.fromkeys(trained[step]))
        assert f"error: the gradient is not finite at step {step} (its norm is " in ended.said
        assert f"whose rows were row(s) {rows}; no update was made" in ended.said
        assert len(trained[step]) == micro_batches
    check_stopped(sound, run, ended, last_good=step - 1)

    resumed = sound.train(tmp_path, "--resume")
    assert resumed.code == 0, resumed.said
    assert result(run) == result(sound.undisturbed)


def test_all_rows_that_were_packed_with_a_bad_one_are_named(
    forkery: Forkery, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    record = tmp_path / "record.jsonl"
    strike = {"record": str(record), "poison": {"where": "loss", "steps": [2], "value": math.nan, "micro": 1}}
    steps = ("train.max_steps=2", "train.gradient_accumulation_steps=3")
    ended = forkery.run("train", str(write_recipe(tmp_path)), *QUICK, *steps, strike=strike)
    assert ended.code == 2, ended.said
    rows = rows_by_step(record)[2]
    assert len(rows) == 3
    assert f"error: the loss is nan at step 2, in row(s) {', '.join(rows)};" in ended.said
    assert count_updates(record) == 1


@pytest.mark.parametrize("number", NUMBERS)
def test_a_loss_that_is_not_finite_in_an_evaluation_ends_the_run(
    setting: Callable[[int], Setting], tmp_path: Path, number: str, soak: bool
) -> None:
    if number == "inf" and not soak:
        pytest.skip("the same as nan; only in the soak")
    sound, run = setting(1), tmp_path / "runs" / "run"
    ended = sound.train(tmp_path, poison={"where": "evaluation", "steps": [2], "value": NUMBERS[number], "micro": 2})
    assert ended.code == 2, ended.said
    assert f"error: the loss is {number} in the evaluation after step 2, in row(s) messages:chat.jsonl:1;" in ended.said
    assert count_updates(tmp_path / "record.jsonl") == 2
    check_stopped(sound, run, ended, last_good=1)
    resumed = sound.train(tmp_path, "--resume")
    assert resumed.code == 0, resumed.said
    assert result(run) == result(sound.undisturbed)


def check_stopped(sound: Setting, run: Path, ended: Ended, *, last_good: int) -> None:
    """The run says that it stopped; its checkpoints are whole, finite and those of the undisturbed run."""
    assert "Traceback" not in ended.said
    described = json.loads((run / "run.json").read_text())
    assert (described["status"], described["stopped_by"]) == ("stopped", "UserError")
    assert not (run / "adapter").exists()
    newest, skipped = newest_sealed(run)
    assert newest == (checkpoint_path(run, last_good) if last_good else None)
    assert not skipped
    for step in range(1, last_good + 1):
        for name in ("adapter_model.safetensors", "training_state.safetensors"):
            file = checkpoint_path(run, step) / name
            assert all(
                torch.isfinite(tensor).all() for tensor in load_file(file).values() if tensor.is_floating_point()
            )
            assert file.read_bytes() == (checkpoint_path(sound.undisturbed, step) / name).read_bytes()


SPIKED_RUN = (*QUICK, "train.save_steps=1", "train.save_total_limit=null", "train.gradient_accumulation_steps=1")
LONG, SHORT = ("train.max_steps=11", *SPIKED_RUN), ("train.max_steps=2", *SPIKED_RUN)
WARMUP = 1
"""Steps at the start whose learning rate is 0, so that they are not counted as updates."""


def test_a_spike_makes_no_update_and_a_resumed_run_knows_what_is_usual(
    forkery: Forkery, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, run = str(write_recipe(tmp_path)), tmp_path / "runs" / "run"
    options, strike = (*LONG, "train.spike_factor=100"), {"poison": {**SPIKE, "steps": [9, 11]}}
    ended = forkery.run("train", recipe, *options, strike=strike)
    assert ended.code == 0, ended.said
    for step in (9, 11):
        assert f"step {step}: no update: the gradient's norm, " in ended.said
    described = json.loads((run / "run.json").read_text())
    seen, whole = described["seen"], result(run)
    assert (seen["spikes"], seen["updates"]) == (2, 11 - 2 - WARMUP)
    assert learnt(run, 8) == learnt(run, 9) != learnt(run, 10) == learnt(run, 11)

    # As if it had been killed between the two.
    shutil.rmtree(checkpoint_path(run, 11))
    shutil.rmtree(run / "adapter")
    (run / "run.json").write_text(json.dumps({**described, "status": "stopped"}))
    resumed = forkery.run("train", recipe, "--resume", *options, strike=strike)
    assert resumed.code == 0, resumed.said
    assert "going on from checkpoint-10" in resumed.said
    assert "step 11: no update" in resumed.said
    assert result(run) == whole
    assert json.loads((run / "run.json").read_text())["seen"] == seen


def test_a_spike_is_applied_where_no_limit_is_set(
    forkery: Forkery, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    ended = forkery.run("train", str(write_recipe(tmp_path)), *SHORT, strike={"poison": {**SPIKE, "steps": [2]}})
    assert ended.code == 0, ended.said
    assert "no update" not in ended.said
    run = tmp_path / "runs" / "run"
    seen = json.loads((run / "run.json").read_text())["seen"]
    assert (seen.get("spikes", 0), seen["updates"]) == (0, 2 - WARMUP)
    assert learnt(run, 1) != learnt(run, 2)
