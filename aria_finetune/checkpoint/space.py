"""Disk space: how much a save needs, how much is free, and what a full disk is called in every library.

Knows folders and bytes, nothing of checkpoints.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from aria_finetune.errors import UserError

MIB = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "code: 28", "os error 28", "os error 122")
"""How libraries written in Rust spell the same errors."""


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the disk of `folder`, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, what: str, fix: str) -> None:
    """Refuse what does not fit, before anything of it is written.

    Raises:
        UserError: fewer than `needed` bytes are free; the message names both.
    """
    free = free_bytes(folder)
    if needed > free:
        raise UserError(
            f"{what} needs {shown_bytes(needed)}, and {shown_bytes(free)} are free on its disk",
            where=str(folder),
            fix=fix,
        )


@contextmanager
def explain_full_disk(folder: Path, needed: int, what: str, fix: str) -> Iterator[None]:
    """Turn whatever a library raises on a full disk into a message with the bytes needed and free.

    Raises:
        UserError: the disk ran full within the block.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"the disk ran full while {what} was written: it needs {shown_bytes(needed)}, "
            f"{shown_bytes(free_bytes(folder))} are free",
            where=str(folder),
            fix=fix,
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception of any library says that the disk or the user's share of it is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _FULL_TEXTS)


def folder_bytes(folder: Path, suffixes: Collection[str]) -> int:
    """Bytes of the files right in `folder` whose names end in one of `suffixes`."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in suffixes and path.is_file())


def shown_bytes(count: int) -> str:
    """A number of bytes as messages have it, in MiB too."""
    return f"{count / MIB:,.1f} MiB ({count:,} bytes)"
