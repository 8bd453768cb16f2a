"""The checkpoints of a run: which is the newest sound one, which may go.

Knows their names and seals, not what is in them.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from aria_finetune.checkpoint.sealing import BrokenSeal, check_seal, is_sealed
from aria_finetune.staging import finish_removals, remove_folder

_NAME = re.compile(r"checkpoint-(\d{1,12})")


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that is not used, and why."""

    folder: Path
    reason: str


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return run / f"checkpoint-{step}"


def checkpoints(run: Path) -> dict[int, Path]:
    """Checkpoint folders of a run by step, the newest first, sound or not."""
    found = {int(match[1]): path for path in run.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}
    return {step: found[step] for step in sorted(found, reverse=True)}


def newest_sealed(run: Path) -> tuple[Path | None, list[Skipped]]:
    """The newest checkpoint whose every byte is as it was sealed, and the newer ones that are not."""
    skipped = []
    for folder in checkpoints(run).values():
        try:
            check_seal(folder)
        except BrokenSeal as broken:
            skipped.append(Skipped(folder, str(broken)))
        else:
            return folder, skipped
    return None, skipped


def rotate(run: Path, keep: int | None, *, best: Path | None = None) -> list[Path]:
    """Remove the oldest sealed checkpoints until `keep` are left; never the newest, never the best.

    A folder is renamed before it is emptied, so that a kill in between leaves no broken checkpoint behind.

    Returns:
        The folders that were removed.
    """
    clear_leftovers(run)
    if keep is None:
        return []
    sealed = [folder for folder in checkpoints(run).values() if is_sealed(folder)]
    protected = {folder.name for folder in (*sealed[:1], *([best] if best else []))}
    removable = [folder for folder in reversed(sealed) if folder.name not in protected]
    removed = removable[: max(len(sealed) - max(keep, len(protected)), 0)]
    for folder in removed:
        remove_folder(folder)
    return removed


def clear_leftovers(run: Path) -> None:
    """Remove what killed processes had begun to write or to remove; only while no other works in the folder."""
    finish_removals(run, "checkpoint-*")
    for left in run.glob(".checkpoint-*.partial-*"):
        shutil.rmtree(left, ignore_errors=True)
