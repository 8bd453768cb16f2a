"""The hidden folder in which a data set is made: whose it is, what of it is kept when the work is cut short, its end.

It holds the plan of the conversion, the parts that splits have written, and what the data set will hold. A kill at any
moment leaves either all that was finished or a folder without a plan, which counts as empty.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aria_finetune.conversion.dataset import is_over_limit
from aria_finetune.conversion.media_store import INCOMING, MEDIA_FOLDER
from aria_finetune.conversion.work import PARTS
from aria_finetune.errors import UserError
from aria_finetune.staging import REMOVED, check_named, finish_removals, lock_alone, remove_folder, replace_text

PLAN = "plan.json"
LOCK = ".lock"

_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_output(output: Path) -> None:
    """Refuse what must not be replaced: anything but an empty folder and a data set with too many rejects. What a killed
    process was removing there goes now.

    Raises:
        UserError: something else is there, or the output has no name.
    """
    check_named(output)
    finish_removals(output.parent, output.name)
    replaceable = not output.exists() or is_over_limit(output) or (output.is_dir() and not any(output.iterdir()))
    if output.is_symlink() or not replaceable:
        fix = "name a new folder, or remove it"
        raise UserError("there is something at the output already", where=str(output), fix=fix)


@contextmanager
def working_folder(output: Path) -> Iterator[Path]:
    """The folder beside the output, kept by no other process; what was cut short stays there.

    Raises:
        UserError: another process works there, or the output is in use.
    """
    folder = output.with_name(f".{output.name}.converting")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        fix = "wait for it, or name another output"
        lock_alone(file, UserError("another process is converting to it", where=str(output), fix=fix))
        try:
            check_output(output)  # the process that was here before may have come to its end just now
            yield folder
        except BaseException:
            if folder.is_dir() and [left.name for left in folder.iterdir()] == [LOCK]:
                clear(folder)
            raise


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the work that was begun in the folder; None if there is none."""
    try:
        plan: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan


def take_up(folder: Path, plan: Mapping[str, Any]) -> None:
    """Keep what an earlier start with an equal plan has finished, and nothing else."""
    if read_plan(folder) == plan:
        remove_incoming(folder)
        return
    clear(folder, keep=LOCK)
    (folder / PARTS).mkdir()
    replace_text(folder / PLAN, json.dumps(plan, indent=1))


def remove_incoming(folder: Path) -> None:
    """Remove media that killed processes were writing."""
    for left in (folder / MEDIA_FOLDER).glob(f"{INCOMING}*"):
        left.unlink()


def clear(folder: Path, keep: str | None = None) -> None:
    """Remove what is in the folder, its plan first; and the folder too, if nothing is to be kept."""
    (folder / PLAN).unlink(missing_ok=True)
    for left in folder.iterdir():
        if left.name != keep:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    if keep is None:
        folder.rmdir()


def take_place(folder: Path, output: Path) -> None:
    """Give the folder the name of the output, without what only its making needed."""
    if output.exists():
        remove_folder(output)
    parts = output.with_name(f"{REMOVED}{output.name}-{PARTS}-{os.getpid()}")
    # Only a kill within these four steps, which take no time, has it all made again.
    (folder / PLAN).unlink()
    (folder / PARTS).rename(parts)
    (folder / LOCK).unlink()
    folder.rename(output)
    shutil.rmtree(parts, ignore_errors=True)


@contextmanager
def full_disk_told(folder: Path, output: Path) -> Iterator[None]:
    """Say of a full disk what is written, about how much more is needed, and what is free.

    Raises:
        UserError: the disk ran full within the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        more = _still_needed(folder, written)
        needed = "" if more is None else f", about {_shown(more)} more are needed"
        free = shutil.disk_usage(output.parent).free
        raise UserError(
            f"the disk ran full: {_shown(written)} are written{needed}, {_shown(free)} are free",
            where=str(output),
            fix="free some space and start it again, which goes on with what is not done yet; or name another output",
        ) from error


def _still_needed(folder: Path, written: int) -> int | None:
    """By what splits have taken so far, those that are under way for halves; None before one is finished."""
    names = [path.name for path in (folder / PARTS).glob("?????.*")]
    finished = sum(name.count(".") == 1 for name in names)
    done = finished + (sum(name.count(".") == 2 for name in names) - finished) / 2
    plan = read_plan(folder)
    return int(written * (len(plan["splits"]) - done) / done) if plan and finished else None


def _shown(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
