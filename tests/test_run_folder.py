"""The folder of a run: what a run's logs keep, what is cleaned up and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aria_finetune.errors import UserError
from aria_finetune.run_folder import (
    METRICS_FILE,
    SKIPPED_FILE,
    RunFolder,
    begun_run,
    check_run_folder,
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
    assert begun_run(path)
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
    assert not begun_run(tmp_path)


def test_a_run_without_a_readable_description_can_still_go_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "run.json").write_text('{"status": ')
    assert begun_run(tmp_path)
    (tmp_path / "run.json").unlink()
    assert begun_run(tmp_path)
    with resume_run_folder(tmp_path) as run:
        assert run.describe() == {}
        assert run.began


@pytest.mark.parametrize("left", ["nothing but its lock", "a preparation", "nothing"])
def test_an_old_run_survives_a_replacement_killed_at_any_moment(tmp_path: Path, left: str) -> None:
    path, aside = tmp_path / "run", tmp_path / ".run.replaced"
    aside.mkdir()
    (aside / "run.json").write_text('{"status": "finished"}')
    if left != "nothing":
        path.mkdir()
        (path / ".lock").touch()
    if left == "a preparation":
        (path / "run.json").write_text('{"status": "preparing"}')
    assert begun_run(path)
    assert (path / "run.json").read_text() == '{"status": "finished"}'
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_what_a_living_preparation_has_set_aside_is_left_alone(tmp_path: Path) -> None:
    path, aside = tmp_path / "run", tmp_path / ".run.replaced"
    for folder, status in ((path, "preparing"), (aside, "finished")):
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"status": status}))
    hold = "import fcntl,sys; f=[open(p,'w') for p in sys.argv[1:]]; [fcntl.lockf(g,fcntl.LOCK_EX) for g in f]"
    hold += "; print('held',flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path / ".lock"), str(aside / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        begun_run(path)
        assert json.loads((aside / "run.json").read_text())["status"] == "finished"
        assert json.loads((path / "run.json").read_text())["status"] == "preparing"
        holder.communicate("\n")
    begun_run(path)
    assert json.loads((path / "run.json").read_text())["status"] == "finished"


def test_a_folder_of_the_users_beside_the_run_is_not_ours(tmp_path: Path) -> None:
    mine = tmp_path / "run.replaced"
    mine.mkdir()
    (mine / "run.json").write_text("{}")
    with open_run_folder(tmp_path / "run", overwrite=False) as run:
        run.begin({})
    assert not begun_run(tmp_path / "other")
    assert (mine / "run.json").exists()


def test_a_link_to_a_folder_is_followed_once_and_kept(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "disk")
    with pytest.raises(KeyError), open_run_folder(link, overwrite=False):
        raise KeyError
    assert link.is_symlink()
    assert list((tmp_path / "disk").iterdir()) == []
    with open_run_folder(link, overwrite=False) as run:
        run.begin({})
    assert (tmp_path / "disk" / "run.json").exists()


def test_a_run_may_lie_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_run_folder(Path(), overwrite=False) as run:
        run.begin({})
    assert (tmp_path / "run.json").exists()


def test_a_folder_that_can_not_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match="can't be written to"), resume_run_folder(tmp_path):
        pass


@pytest.mark.parametrize("killed", ["while preparing", "after moving the old run", "after training began"])
def test_a_run_being_replaced_is_there_again_unless_the_new_one_began(tmp_path: Path, killed: str) -> None:
    run, old = tmp_path / "run", tmp_path / ".run.replaced"
    old.mkdir()
    (old / "run.json").write_text('{"status": "finished", "which": "old"}')
    if killed != "after moving the old run":
        run.mkdir()
        status = "preparing" if killed == "while preparing" else "running"
        (run / "run.json").write_text(json.dumps({"status": status, "which": "new"}))
    with pytest.raises(UserError, match="not empty"), open_run_folder(run, overwrite=False):
        pass
    assert json.loads((run / "run.json").read_text())["which"] == ("new" if "began" in killed else "old")
    assert not old.exists()
