"""Which checkpoint is chosen, which may go."""

from __future__ import annotations

from pathlib import Path

import pytest

from aria_finetune.checkpoint.retention import (
    checkpoint_path,
    checkpoints,
    clear_leftovers,
    newest_sealed,
    rotate,
)
from aria_finetune.checkpoint.sealing import sealed_folder
from aria_finetune.staging import remove_folder


def seal(run: Path, *steps: int) -> None:
    for step in steps:
        with sealed_folder(checkpoint_path(run, step)) as folder:
            (folder / "state.json").write_text(str(step))


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoints(run).values()]


def test_newest_is_by_step_not_by_name_or_time(tmp_path: Path) -> None:
    seal(tmp_path, 100, 9, 20)
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-20", "checkpoint-9"]
    assert newest_sealed(tmp_path) == (tmp_path / "checkpoint-100", [])


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    seal(tmp_path, 1)
    for name in ("checkpoint-", "checkpoint-2x", "checkpoint--3", ".checkpoint-4.partial-77", "checkpoint-5.bak"):
        (tmp_path / name).mkdir()
    assert names(tmp_path) == ["checkpoint-1"]


def test_broken_ones_are_passed_over_with_the_reason(tmp_path: Path) -> None:
    seal(tmp_path, 1, 2, 3, 4)
    (tmp_path / "checkpoint-4" / "manifest.json").unlink()
    (tmp_path / "checkpoint-3" / "state.json").write_text("4")
    chosen, skipped = newest_sealed(tmp_path)
    assert chosen == tmp_path / "checkpoint-2"
    assert [(broken.folder.name, broken.reason) for broken in skipped] == [
        ("checkpoint-4", "manifest.json can't be read: No such file or directory"),
        ("checkpoint-3", "state.json was changed: its SHA-256 differs"),
    ]


def test_without_a_sound_one_there_is_none(tmp_path: Path) -> None:
    assert newest_sealed(tmp_path) == (None, [])
    (tmp_path / "checkpoint-1").mkdir()
    chosen, skipped = newest_sealed(tmp_path)
    assert chosen is None
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, [5, 4, 3, 2, 1]),
        (9, None, [5, 4, 3, 2, 1]),
        (2, None, [5, 4]),
        (2, 1, [5, 1]),
        (3, 1, [5, 4, 1]),
        (1, None, [5]),
        (1, 2, [5, 2]),
        (1, 5, [5]),
    ],
)
def test_the_oldest_go_never_the_newest_never_the_best(
    tmp_path: Path, keep: int | None, best: int | None, left: list[int]
) -> None:
    seal(tmp_path, 1, 2, 3, 4, 5)
    removed = rotate(tmp_path, keep, best=checkpoint_path(tmp_path, best) if best else None)
    assert list(checkpoints(tmp_path)) == left
    assert len(removed) == 5 - len(left)
    assert not list(tmp_path.glob(".*"))


def test_a_broken_one_does_not_push_a_sound_one_out(tmp_path: Path) -> None:
    seal(tmp_path, 1, 2, 3)
    (tmp_path / "checkpoint-3" / "state.json").unlink()
    rotate(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]


def test_a_removal_that_was_cut_short_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed right after the rename
        remove_folder(tmp_path / "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-2"]
    assert len(list(tmp_path.glob(".removed-*"))) == 1
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
