"""A disk that runs full: refused before the start, before a save, in mid-save; the older checkpoint stays whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import result
from forking import Forkery

from aria_finetune.checkpoint.retention import newest_sealed

SMALL_BYTES = 12 * 2**20


@pytest.fixture(scope="module")
def small_disk(mount_disk: Callable[[int], tuple[Forkery, Path, Path]]) -> tuple[Forkery, Path, Path]:
    """One of 12 MiB."""
    return mount_disk(SMALL_BYTES)


def test_a_disk_that_fills_up_costs_no_checkpoint(
    small_disk: tuple[Forkery, Path, Path], write_recipe: Callable[..., Path], undisturbed: Path, tmp_path: Path
) -> None:
    forkery, disk, seen = small_disk
    recipe, run = str(write_recipe(tmp_path, output=disk / "run")), seen / "run"

    # In the middle of the second save: the check before it saw enough room.
    strike = {"at": "save", "count": 2, "fill": str(disk), "leave": 20_000}
    ended = forkery.run("train", recipe, strike=strike)
    assert ended.code == 2, ended.said
    assert "the disk ran full while checkpoint-6 was written: it needs" in ended.said
    assert "checkpoint-3 is whole, and --resume goes on from it" in ended.said
    assert "Traceback" not in ended.said
    assert newest_sealed(run) == (run / "checkpoint-3", [])
    assert not list(run.glob(".*partial*"))

    # Before the save that comes next: it is not even tried.
    ended = forkery.run("train", recipe, "--resume")
    assert ended.code == 2, ended.said
    assert "are free on its disk" in ended.said
    assert newest_sealed(run) == (run / "checkpoint-3", [])

    (seen / "filler").unlink()
    resumed = forkery.run("train", recipe, "--resume")
    assert resumed.code == 0, resumed.said
    assert result(run) == result(undisturbed)
    shutil.rmtree(run)


def test_a_disk_full_at_any_write_of_a_save_leaves_the_older_checkpoint_whole(
    small_disk: tuple[Forkery, Path, Path], write_recipe: Callable[..., Path], tmp_path: Path, soak: bool
) -> None:
    """The disk gives out a little later each time: in the adapter, the tokenizer, the state, the manifest."""
    forkery, disk, seen = small_disk
    recipe, run = str(write_recipe(tmp_path, output=disk / "run")), seen / "run"
    ended = forkery.run("train", recipe, strike={"at": "update", "count": 4, "signals": [15]})
    assert newest_sealed(run) == (run / "checkpoint-4", []), ended.said
    size = sum(file.stat().st_size for file in (run / "checkpoint-4").iterdir())
    levels = 24 if soak else 2
    for level in range(levels):
        strike = {"at": "space was enough", "fill": str(disk), "leave": size * level // levels}
        ended = forkery.run("train", recipe, "--resume", strike=strike)
        assert ended.code == 2, ended.said
        assert "the disk ran full while checkpoint-6 was written" in ended.said
        assert "Traceback" not in ended.said
        assert newest_sealed(run) == (run / "checkpoint-4", [])
        assert not list(run.glob(".*partial*"))
        (seen / "filler").unlink()
    shutil.rmtree(run)


def test_a_run_that_can_never_fit_is_refused_before_its_first_step(
    small_disk: tuple[Forkery, Path, Path], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    forkery, disk, seen = small_disk
    recipe = str(write_recipe(tmp_path, output=disk / "run"))
    ended = forkery.run("train", recipe, "lora.rank=512", "train.save_total_limit=3")
    assert ended.code == 2, ended.said
    assert "a run that keeps 3 checkpoint(s), one being written beside them, and the adapter needs" in ended.said
    assert "are free on its disk" in ended.said
    assert "evaluation loss" not in ended.said
    assert not (seen / "run").exists()
