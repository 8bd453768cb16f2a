"""Folders that are complete or not there: written beside their place and renamed at the end.

Knows nothing of what is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aria_finetune.errors import UserError


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `output` when the block ends well; else nothing of it is left.

    Raises:
        UserError: something other than an empty folder is at `output` already.
    """
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


def _clear_crashed(output: Path) -> None:
    """Remove what processes that are gone left behind; a merge of the real Aria is 50 GB."""
    for left in output.parent.glob(f".{output.name}.partial-*"):
        process = left.name.rpartition("-")[2]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
