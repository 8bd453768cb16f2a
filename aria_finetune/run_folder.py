"""The folder of one run: made, described, continued and cleaned up.

`run.json` says what ran and how it went, `metrics.jsonl` has a line per logged step, `routing.jsonl` another with lists by
layer, `skipped.jsonl` a line per row that could not be read, `answers.jsonl` a line per held-out row that was answered. Knows files, nothing of training.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.errors import UserError
from aria_finetune.redaction import redact_values
from aria_finetune.staging import finish_removals, lock_alone, remove_folder, replace_text, sync

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped.jsonl"
ROUTING_FILE = "routing.jsonl"
ANSWERS_FILE = "answers.jsonl"
PICTURE_FILE = "loss.png"
ROUTING_PICTURE = "routing.png"
REJECTS_FILE = "rejects.jsonl"
ROWS_FILE = "rows.jsonl"
LOCK_FILE = ".lock"
LOGS = (METRICS_FILE, SKIPPED_FILE, ROUTING_FILE, ANSWERS_FILE)
"""Files that grow while a run goes on."""
PREPARING = "preparing"


class RunFolder:
    """A folder that holds one run; make it with `open_run_folder` or `resume_run_folder`."""

    def __init__(self, path: Path, *, replaced: Path | None = None, began: bool = False) -> None:
        self.path = path
        self.adapter = path / ADAPTER_FOLDER
        self.began = began
        """Whether training began: from then on the folder stays whatever happens."""
        self._replaced = replaced

    def begin(self, description: Mapping[str, Any]) -> None:
        """Say that training begins; a run that this one replaces is gone from here on."""
        self.write({"status": "running", **description})
        self.began = True
        if self._replaced is not None:
            shutil.rmtree(self._replaced, ignore_errors=True)

    def write(self, description: Mapping[str, Any]) -> None:
        """Write `run.json`, whole or not at all."""
        text = json.dumps(redact_values(description), indent=2, ensure_ascii=False, allow_nan=False)
        replace_text(self.path / RUN_FILE, text + "\n")

    def describe(self) -> dict[str, Any]:
        """What `run.json` says; empty if there is none that can be read."""
        return _describe(self.path)

    def bytes_to_go(self) -> int:
        """Bytes of checkpoints that are there already, and of the run that this one replaces."""
        folders = [*self.path.glob("checkpoint-*"), *([self._replaced] if self._replaced else [])]
        return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())

    def append(self, name: str, entry: Mapping[str, Any]) -> None:
        """Append a line to one of `LOGS`."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(redact_values(entry), ensure_ascii=False, allow_nan=False) + "\n")

    def entries(self, name: str) -> list[dict[str, Any]]:
        """The lines of one of `LOGS`."""
        file = self.path / name
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    def log_sizes(self) -> dict[str, int]:
        """Bytes of each of `LOGS`, which the disk holds by then."""
        sizes = {}
        for name in LOGS:
            if (self.path / name).exists():
                sync(self.path / name)
                sizes[name] = (self.path / name).stat().st_size
        return sizes

    def cut_logs(self, sizes: Mapping[str, int]) -> None:
        """Take back what was written after `log_sizes` gave `sizes`: those steps are done again."""
        for name in LOGS:
            file = self.path / name
            if file.exists():
                os.truncate(file, min(sizes.get(name, 0), file.stat().st_size))


@contextmanager
def open_run_folder(path: Path, *, overwrite: bool) -> Iterator[RunFolder]:
    """Make the folder of a new run; unless training begins in it, nothing of it is left.

    A run that is to be replaced is kept aside until then, and comes back if training never began, also when this
    process was killed: the next one puts it back.

    Raises:
        UserError: something is there already and `overwrite` is off, it is not the folder of a run, or another
            process works in it.
    """
    path = real_path(path)
    begun_run(path)
    replacing = check_run_folder(path, overwrite=overwrite)
    made = [parent for parent in path.parents if not parent.exists()]
    was_there = path.exists() and not replacing
    run = RunFolder(path, replaced=_aside(path) if replacing else None)
    with ExitStack() as locks:
        try:
            if replacing:
                locks.enter_context(_locked(path))  # held on, so that no other process puts the old run back
                path.rename(_aside(path))
            path.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_locked(path))
            run.write({"status": PREPARING})
            yield run
        finally:
            if not run.began:
                if path.exists():
                    remove_folder(path)
                _remove_empty(made)
                if was_there:
                    path.mkdir()
                if replacing and _is_run(_aside(path)):
                    _aside(path).rename(path)


@contextmanager
def resume_run_folder(path: Path) -> Iterator[RunFolder]:
    """Continue in the folder of a run that began; it stays whatever happens.

    Raises:
        UserError: another process works in it.
    """
    path = real_path(path)
    with _locked(path):
        yield RunFolder(path, began=True)


def real_path(path: Path) -> Path:
    """The folder itself where `path` is a link to it, or has no name of its own (`.`, `..`)."""
    return path.resolve() if path.is_symlink() or path.name in {"", ".."} else path


def begun_run(path: Path) -> bool:
    """Whether a run stands at `path` whose training began.

    First undoes what a process left that was killed before its training began, or while it took an old run away.
    """
    path = real_path(path)
    finish_removals(path.parent, path.name)
    if _is_abandoned(path):
        remove_folder(path)
    aside = _aside(path)
    if _is_run(aside) and not _is_busy(aside):
        if not path.exists():
            aside.rename(path)
        elif _describe(path).get("status", PREPARING) != PREPARING:
            shutil.rmtree(aside, ignore_errors=True)
    return _is_run(path) or any(path.glob("checkpoint-*"))


def check_run_folder(path: Path, *, overwrite: bool) -> bool:
    """Whether a run stands there that may be replaced.

    Raises:
        UserError: something stands there that may not.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())) or _is_abandoned(path):
        return False
    if not overwrite:
        raise UserError(
            "the run folder is not empty",
            where=str(path),
            fix="choose another output.dir, set output.overwrite=true to replace the run, or go on with --resume",
        )
    if not _is_run(path):
        raise UserError(
            f"there is no {RUN_FILE} in it, so it is not a run and is not overwritten",
            where=str(path),
            fix="choose another output.dir, or remove what is there yourself",
        )
    return True


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def _is_run(path: Path) -> bool:
    return (path / RUN_FILE).is_file()


def _is_abandoned(path: Path) -> bool:
    """Whether a preparation lies there whose process is gone."""
    if not path.is_dir():
        return False
    barely_made = {entry.name for entry in path.iterdir()} in ({LOCK_FILE}, {LOCK_FILE, RUN_FILE + ".part"})
    return (barely_made or _describe(path).get("status") == PREPARING) and not _is_busy(path)


def _is_busy(path: Path) -> bool:
    """Whether another process works there; also where the file system can't tell."""
    try:
        with _locked(path) as held:
            return not held
    except UserError:
        return True


def _describe(path: Path) -> dict[str, Any]:
    try:
        described = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Keep other processes out of a run's folder; whether that worked, as `lock_alone` says."""
    try:
        file = (path / LOCK_FILE).open("w")
    except OSError as error:
        raise UserError(
            f"the run's folder can't be written to: {error.strerror}", where=str(path), fix="choose another output.dir"
        ) from error
    with file:
        busy = UserError("another process works in this run's folder", where=str(path), fix="wait for it, or stop it")
        yield lock_alone(file, busy)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
