"""Folders and files that are complete or not there: written beside their place and renamed at the end.

Knows nothing of what is written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from aria_finetune.errors import UserError

REMOVED = ".removed-"
"""How the name of a folder begins that is being removed."""


def lock_alone(file: IO[str], busy: UserError) -> bool:
    """Keep other processes out for as long as `file` is open; whether that worked: some network file systems have no locks.

    A record lock, because a forked worker that outlives its killed parent by seconds would go on holding any other.

    Raises:
        UserError: `busy`, as another process holds it.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise busy from error
    except OSError:
        return False
    return True


def check_named(output: Path) -> None:
    """Refuse a place that nothing can be renamed to.

    Raises:
        UserError: it is the folder one is in, one above it, or the root.
    """
    if output.name in {"", ".."}:
        raise UserError(
            "the output needs a name of its own: it is made beside its place and renamed at the end",
            where=str(output),
            fix="name a new folder, such as ./results",
        )


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `output` when the block ends well; else nothing of it is left.

    Raises:
        UserError: something other than an empty folder is at `output` already, or it has no name.
    """
    check_named(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            "there is something at the output already", where=str(output), fix="name a new folder, or remove it"
        )
    _clear_crashed(output)
    folder = output.with_name(f".{output.name}.partial-{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, its name first: half of one must not be taken for a whole, whenever this is cut short."""
    gone = folder.with_name(f"{REMOVED}{folder.name}-{os.getpid()}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def finish_removals(parent: Path, name: str) -> None:
    """Finish what killed processes had begun to remove; `name` is the folder's in `parent`, or a pattern of names."""
    for left in parent.glob(f"{REMOVED}{name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file by way of a temporary neighbour, so that no reader and no power cut meets half of it."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


def sync_tree(folder: Path) -> None:
    """Have the disk keep every file below `folder`, and the names of all of them."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Have the disk keep a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear_crashed(output: Path) -> None:
    """Remove what processes that are gone left behind; a merge of the real Aria is 50 GB."""
    for left in output.parent.glob(f".{output.name}.partial-*"):
        process = left.name.rpartition("-")[2]
        # Our own number was that of another process before us: in a container it is the same at every start.
        if process.isdigit() and (int(process) == os.getpid() or not _alive(int(process))):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
