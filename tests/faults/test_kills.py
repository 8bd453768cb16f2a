"""SIGKILL at any moment, half of them inside a save: nothing broken is chosen, nothing but time is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fault_runs import SAVE_STEPS, result
from forking import Forked, Forkery

from aria_finetune.checkpoint.retention import newest_sealed

LONGEST_SAVE_SECONDS = 0.1
LONGEST_RUN_SECONDS = 8.0


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    forkery: Forkery, write_recipe: Callable[..., Path], undisturbed: Path, tmp_path: Path, soak: bool
) -> None:
    wanted = result(undisturbed)
    kills, chance = (100 if soak else 6), random.Random(7)
    struck = inside = finished = 0
    while struck < kills or inside * 2 < kills:
        folder = tmp_path / str(finished)
        recipe, run = write_recipe(folder), folder / "runs" / "run"
        while True:
            in_save = inside * 2 <= struck
            running = forkery.start("train", str(recipe), "--resume")
            hit = kill_in_save(running, run, chance) if in_save else kill_sometime(running, chance)
            ended = running.wait()
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended.said
            struck += 1
            inside += hit
            check(run)
            if struck >= kills and inside * 2 >= kills:
                break
        if ended.code != 0:
            ended = forkery.run("train", str(recipe), "--resume")
        assert ended.code == 0, ended.said
        assert result(run) == wanted
        assert not list(run.glob(".*partial*")) + list(run.glob(".removed*")), "leftovers of killed processes"
        finished += 1
    print(f"{struck} kills, {inside} of them inside a save, over {finished} runs")


def check(run: Path) -> None:
    """A sealed checkpoint is never broken, and at most one save interval is lost."""
    if not (run / "metrics.jsonl").exists():
        return
    newest, skipped = newest_sealed(run)
    assert skipped == [], "a checkpoint under its final name is broken"
    sealed = int(newest.name.rpartition("-")[2]) if newest else 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    done = max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)
    assert done - sealed <= SAVE_STEPS


def kill_in_save(running: Forked, run: Path, chance: random.Random) -> bool:
    """Kill while a checkpoint is being written, if one still is; whether it was."""
    skip = chance.randrange(3)
    seen: set[str] = set()
    while alive(running.pid):
        partial = next((path.name for path in run.glob(".checkpoint-*.partial-*")), None)
        if partial and partial not in seen:
            seen.add(partial)
            if len(seen) > skip:
                time.sleep(chance.uniform(0, LONGEST_SAVE_SECONDS))
                os.kill(running.pid, signal.SIGKILL)
                return (run / partial).exists()
        time.sleep(0.0005)
    return False


def kill_sometime(running: Forked, chance: random.Random) -> bool:
    """Kill after a random time; whether that was inside a save."""
    end = time.monotonic() + chance.uniform(0, LONGEST_RUN_SECONDS)
    while alive(running.pid) and time.monotonic() < end:
        time.sleep(0.01)
    if alive(running.pid):
        os.kill(running.pid, signal.SIGKILL)
    return False


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
