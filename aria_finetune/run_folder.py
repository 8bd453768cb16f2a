"""The folder of one run: made, described and cleaned up.

`run.json` says what ran and how it went, `metrics.jsonl` has a line per logged step, `loss.png` draws them.
Knows files and drawing, nothing of training.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.errors import UserError

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
PICTURE_FILE = "loss.png"
REJECTS_FILE = "rejects.jsonl"
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "safetensors",
    "pillow",
    "av",
)


class RunFolder:
    """A folder that holds one run; make it with `open_run_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter = path / ADAPTER_FOLDER
        self.began = False
        """Whether training began: from then on the folder stays whatever happens."""

    def write(self, description: Mapping[str, Any]) -> None:
        """Write `run.json`, whole or not at all."""
        replace_text(
            self.path / RUN_FILE, json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def add_metrics(self, entry: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        file = self.path / METRICS_FILE
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


@contextmanager
def open_run_folder(path: Path, *, overwrite: bool) -> Iterator[RunFolder]:
    """Make the folder of a run; unless training begins in it, nothing of it is left.

    A run that is to be replaced is kept aside until then, and comes back if training never began.

    Raises:
        UserError: something is there already and `overwrite` is off, or it is not the folder of a run.
    """
    replaced = path.with_name(path.name + ".replaced") if check_run_folder(path, overwrite=overwrite) else None
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    run = RunFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield run
    finally:
        if not run.began:
            shutil.rmtree(path, ignore_errors=True)
        if replaced is not None and run.began:
            shutil.rmtree(replaced, ignore_errors=True)
        elif replaced is not None:
            replaced.rename(path)


def check_run_folder(path: Path, *, overwrite: bool) -> bool:
    """Whether a run stands there that may be replaced.

    Raises:
        UserError: something stands there that may not.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    if not overwrite:
        raise UserError(
            "the run folder is not empty",
            where=str(path),
            fix="choose another output.dir, or set output.overwrite=true to replace the run",
        )
    if not (path / RUN_FILE).is_file():
        raise UserError(
            f"there is no {RUN_FILE} in it, so it is not a run and is not overwritten",
            where=str(path),
            fix="choose another output.dir, or remove what is there yourself",
        )
    return True


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in ("aria-finetune", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a converted folder's manifest, which holds the hashes of its shards."""
    file = path / "manifest.json" if path.is_dir() else path
    if file.is_dir() or not file.exists():
        return "unknown"
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write a text file by way of a temporary neighbour, so that no reader meets half of it."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def draw_losses(metrics: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw training and evaluation loss over steps as PNG; without a logged loss nothing is drawn."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second that only this needs)

    entries = list(metrics)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    drawn = False
    for key, label, marker in (("loss", "training", ""), ("eval_loss", "evaluation", "o")):
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker)
            drawn = True
    if not drawn:
        return
    axes.set(xlabel="step", ylabel="loss per labelled token (nats)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
