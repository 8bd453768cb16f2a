"""SIGINT and SIGTERM in every phase of a run: exit codes, what is sealed, a second signal."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import STEPS, result
from forking import Forkery

from aria_finetune.checkpoint.retention import newest_sealed

SIGNALS = [signal.SIGTERM, signal.SIGINT]
STEP_OF = {
    "accumulation": [(1, 1), (2, 1), (6, 3), (23, 12)],
    "update": [(1, 1), (5, 5), (7, 7), (12, 12)],
    "evaluation": [(1, 6), (4, 6), (6, 12), (10, 12)],
    "save": [(1, 3), (2, 6), (3, 9), (4, 12)],
}
"""Moments of a run by phase: the how-maniest call, and the step whose checkpoint must be there afterwards."""


FEW = [
    (signal.SIGTERM, "accumulation"),
    (signal.SIGINT, "update"),
    (signal.SIGTERM, "evaluation"),
    (signal.SIGINT, "save"),
]
"""Signals and phases of `make test`; `make soak` has all of them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    soak = metafunc.config.getoption("--soak")
    if "call" in metafunc.fixturenames:
        cases = [
            (number, phase, *place)
            for number in SIGNALS
            for phase, places in STEP_OF.items()
            for place in (places if soak else places[1:2])
            if soak or (number, phase) in FEW
        ]
        metafunc.parametrize(("number", "phase", "call", "step"), cases)
    elif "phase" in metafunc.fixturenames:
        phases = (
            ["reading rows", "loading"] if "early" in metafunc.function.__name__ else ["evaluation", "save", "update"]
        )
        every = [(number, phase) for number in SIGNALS for phase in phases]
        metafunc.parametrize(("number", "phase"), every if soak else [every[0], every[-2]])
    elif "number" in metafunc.fixturenames:
        metafunc.parametrize("number", SIGNALS if soak else SIGNALS[:1])


def test_a_signal_ends_the_step_seals_and_the_resumed_run_is_the_same(
    forkery: Forkery, write_recipe: Callable[..., Path], undisturbed: Path, tmp_path: Path,
    number: int, phase: str, call: int, step: int,
) -> None:  # fmt: skip
    recipe, run = str(write_recipe(tmp_path)), tmp_path / "runs" / "run"
    ended = forkery.run("train", recipe, strike={"at": phase, "count": call, "signals": [number]})
    assert ended.code == 128 + number, ended.said
    assert f"stopped by {signal.Signals(number).name}" in ended.said
    newest, skipped = newest_sealed(run)
    assert newest == run / f"checkpoint-{step}"
    assert not skipped
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    resumed = forkery.run("train", recipe, "--resume")
    assert resumed.code == 0, resumed.said
    assert f"going on from checkpoint-{step}, sealed after step {step}" in resumed.said
    assert result(run) == result(undisturbed)


def test_an_early_signal_leaves_nothing(
    forkery: Forkery, write_recipe: Callable[..., Path], tmp_path: Path, number: int, phase: str
) -> None:
    recipe = write_recipe(tmp_path)
    ended = forkery.run("train", str(recipe), strike={"at": phase, "signals": [number]})
    assert ended.code == 128 + number, ended.said
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_signal_before_training_gives_back_the_run_that_was_to_be_replaced(
    forkery: Forkery, write_recipe: Callable[..., Path], tmp_path: Path, number: int
) -> None:
    recipe, run = str(write_recipe(tmp_path)), tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"status": "finished"}')
    (run / "mine.txt").write_text("mine")
    strike = {"at": "loading", "signals": [number]}
    ended = forkery.run("train", recipe, "output.overwrite=true", strike=strike)
    assert ended.code == 128 + number, ended.said
    assert (run / "mine.txt").read_text() == "mine"
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_second_signal_ends_the_run_at_once(
    forkery: Forkery, write_recipe: Callable[..., Path], undisturbed: Path, tmp_path: Path, number: int, phase: str
) -> None:
    call, step = STEP_OF[phase][1]
    recipe, run = str(write_recipe(tmp_path)), tmp_path / "runs" / "run"
    ended = forkery.run("train", recipe, strike={"at": phase, "count": call, "signals": [number, number]})
    assert ended.code == 128 + number, ended.said
    assert "stopped by" not in ended.said, "it went on after the second signal"
    assert not (run / f"checkpoint-{step}").exists()
    resumed = forkery.run("train", recipe, "--resume")
    assert resumed.code == 0, resumed.said
    assert result(run) == result(undisturbed)


def test_a_signal_to_the_whole_group_spares_the_loaders_workers(
    forkery: Forkery, write_recipe: Callable[..., Path], undisturbed: Path, tmp_path: Path, number: int
) -> None:
    """Sent from outside, as a service manager sends it: a worker that obeyed would take the run along."""
    recipe, run = str(write_recipe(tmp_path, workers=2)), tmp_path / "runs" / "run"
    running = forkery.start("train", recipe)
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    os.killpg(running.pid, number)
    ended = running.wait()
    assert ended.code == 128 + number, ended.said
    assert "DataLoader worker" not in ended.said
    newest, _ = newest_sealed(run)
    assert newest
    assert int(newest.name.rpartition("-")[2]) < STEPS, "it came too late to show anything"
    resumed = forkery.run("train", recipe, "--resume", "train.dataloader_num_workers=0")
    assert resumed.code == 0, resumed.said
    assert result(run) == result(undisturbed)


def test_a_run_stopped_at_random_moments_ends_as_if_it_had_not_been(
    forkery: Forkery, write_recipe: Callable[..., Path], undisturbed: Path, tmp_path: Path, number: int, soak: bool
) -> None:
    recipe, run = str(write_recipe(tmp_path)), tmp_path / "runs" / "run"
    chance, stops, wanted = random.Random(number), 0, 20 if soak else 1
    while stops < wanted:
        running = forkery.start("train", recipe, "--resume")
        time.sleep(chance.uniform(0.5, 5))
        os.kill(running.pid, number)
        ended = running.wait()
        if ended.code == 0:
            assert result(run) == result(undisturbed)
            recipe = str(write_recipe(tmp_path / str(stops)))
            run = tmp_path / str(stops) / "runs" / "run"
            continue
        stops += 1
        assert ended.code in {128 + number, -number}, ended.said  # the latter before our handler is there
        if (run / "run.json").exists():
            assert newest_sealed(run)[0] is not None
    resumed = forkery.run("train", recipe, "--resume")
    assert resumed.code == 0, resumed.said
    assert result(run) == result(undisturbed)
