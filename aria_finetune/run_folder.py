"""The folder of one run: made, described, continued and cleaned up.

`run.json` says what ran and how it went, `metrics.jsonl` has a line per logged step, `skipped.jsonl` a line per row
that could not be read. Knows files, nothing of training.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.errors import UserError
from aria_finetune.redaction import redact_values
from aria_finetune.staging import replace_text, sync

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped.jsonl"
PICTURE_FILE = "loss.png"
REJECTS_FILE = "rejects.jsonl"
LOCK_FILE = ".lock"
LOGS = (METRICS_FILE, SKIPPED_FILE)
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
    _recover(path)
    replaced = _set_aside(path) if check_run_folder(path, overwrite=overwrite) else None
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    run = RunFolder(path, replaced=replaced)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            run.write({"status": PREPARING})
            yield run
    finally:
        if not run.began:
            shutil.rmtree(path, ignore_errors=True)
            _remove_empty(made[1:])
            if replaced is not None:
                replaced.rename(path)


@contextmanager
def resume_run_folder(path: Path) -> Iterator[RunFolder]:
    """Continue in the folder of a run that began; it stays whatever happens.

    Raises:
        UserError: another process works in it.
    """
    with _locked(path):
        yield RunFolder(path, began=True)


def has_begun(path: Path) -> bool:
    """Whether a run stands at `path` whose training began; what a killed preparation left is cleaned up."""
    _recover(path)
    return (path / RUN_FILE).is_file() or any(path.glob("checkpoint-*"))


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
    if not (path / RUN_FILE).is_file():
        raise UserError(
            f"there is no {RUN_FILE} in it, so it is not a run and is not overwritten",
            where=str(path),
            fix="choose another output.dir, or remove what is there yourself",
        )
    return True


def _set_aside(path: Path) -> Path:
    with _locked(path):
        replaced = _aside(path)
        path.rename(replaced)
    return replaced


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".replaced")


def _recover(path: Path) -> None:
    """Undo what a process left that was killed before its training began, or while it took an old run away."""
    if _is_abandoned(path):
        shutil.rmtree(path, ignore_errors=True)
    replaced = _aside(path)
    if not (replaced / RUN_FILE).is_file():
        return
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        replaced.rename(path)


def _is_abandoned(path: Path) -> bool:
    if _describe(path).get("status") != PREPARING:
        return False
    try:
        with _locked(path):
            return True
    except UserError:
        return False


def _describe(path: Path) -> dict[str, Any]:
    try:
        described = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder.

    A record lock, because a forked worker that outlives its killed parent by seconds would go on holding any other.
    """
    with (path / LOCK_FILE).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "another process works in this run's folder", where=str(path), fix="wait for it, or stop it"
            ) from error
        except OSError:
            pass  # some network file systems have no locks
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
