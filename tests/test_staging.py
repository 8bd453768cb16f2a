"""A staged folder is whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aria_finetune.conversion.workplace import check_output
from aria_finetune.errors import UserError
from aria_finetune.staging import staged_folder
from aria_finetune.workplace import refuse_occupied


def test_it_becomes_the_output_at_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("whole")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "whole"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    def write_half() -> None:
        with staged_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_taken_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("mine")
    with pytest.raises(UserError, match="already"), staged_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "file").read_text() == "mine"


@pytest.mark.parametrize("nameless", [".", "..", "/", "x/.."])
def test_an_output_without_a_name_is_refused(nameless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (refuse_occupied, check_output):
        with pytest.raises(UserError, match="needs a name"):
            check(Path(nameless))
    with pytest.raises(UserError, match="needs a name"), staged_folder(Path(nameless)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_process_that_still_writes_is_not_cleared(tmp_path: Path) -> None:
    other = tmp_path / f".out.partial-{os.getppid()}"
    other.mkdir()
    with staged_folder(tmp_path / "out"):
        pass
    assert other.is_dir()
