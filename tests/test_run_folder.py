"""The folder of a run: what a run's logs keep, what is cleaned up and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aria_finetune.errors import UserError
from aria_finetune.run_folder import (
    METRICS_FILE,
    SKIPPED_FILE,
    RunFolder,
    check_run_folder,
    has_begun,
    open_run_folder,
    resume_run_folder,
)


def test_logs_are_cut_back_to_what_a_checkpoint_knew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append(METRICS_FILE, {"step": 1})
    sizes = run.log_sizes()
    run.append(METRICS_FILE, {"step": 2})
    run.append(SKIPPED_FILE, {"row": 3})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"st')
    run.cut_logs(sizes)
    assert run.entries(METRICS_FILE) == [{"step": 1}]
    assert run.entries(SKIPPED_FILE) == []
    run.cut_logs({})
    assert run.entries(METRICS_FILE) == []


def test_a_log_that_lost_its_end_is_not_made_longer(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append(METRICS_FILE, {"step": 1})
    run.cut_logs({METRICS_FILE: 10_000})
    assert run.entries(METRICS_FILE) == [{"step": 1}]


def test_a_preparation_that_fails_leaves_not_even_the_folders_above(tmp_path: Path) -> None:
    def fail(run: RunFolder) -> None:
        assert run.describe() == {"status": "preparing"}
        raise KeyError

    path = tmp_path / "runs" / "deep" / "run"
    with pytest.raises(KeyError), open_run_folder(path, overwrite=False) as run:
        fail(run)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "other.txt").touch()
    with pytest.raises(KeyError), open_run_folder(path, overwrite=False):
        raise KeyError
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["other.txt"]


def test_a_run_that_began_stays_and_the_one_it_replaces_goes(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with open_run_folder(path, overwrite=False) as run:
        run.begin({"which": "old"})
    assert has_begun(path)
    with pytest.raises(UserError, match=r"go on with --resume|not empty"), open_run_folder(path, overwrite=False):
        pass
    with open_run_folder(path, overwrite=True) as run:
        run.begin({"which": "new"})
        # The old run must not take room while the new one trains.
        assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert json.loads((path / "run.json").read_text()) == {"status": "running", "which": "new"}


def test_only_runs_are_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="it is not a run and is not overwritten"):
        check_run_folder(tmp_path, overwrite=True)
    assert not has_begun(tmp_path)


def test_a_run_without_a_readable_description_can_still_go_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "run.json").write_text('{"status": ')
    assert has_begun(tmp_path)
    (tmp_path / "run.json").unlink()
    assert has_begun(tmp_path)
    with resume_run_folder(tmp_path) as run:
        assert run.describe() == {}
        assert run.began
