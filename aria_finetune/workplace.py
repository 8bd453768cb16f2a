"""A hidden folder beside an output in which it is made, file by file, so that what was killed goes on where it was.

What is finished is known by its SHA-256, and only the whole gets the output's name. Knows files, nothing of what is in them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aria_finetune.errors import UserError
from aria_finetune.provenance import wrong_files
from aria_finetune.staging import check_named, lock_alone, replace_text, sync, sync_tree

BEGUN, LOCK = "begun.json", ".lock"


@dataclass
class Workplace:
    """The folder, what its content is made of, and the SHA-256 of each finished file, with a note on it.

    `of` must be the same for what was begun to be gone on with.
    """

    path: Path
    of: Mapping[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def finished(self, file: str, sha256: str, note: Any = None) -> None:
        """Write down that a file is whole; it must be on the disk, under its name or with `.part` behind it."""
        unnamed = self.path / f"{file}.part"
        if unnamed.exists():
            unnamed.chmod((self.path / LOCK).stat().st_mode)  # safetensors lets nobody else read what it writes
            sync(unnamed)
            unnamed.rename(self.path / file)
        self.files[file] = sha256
        if note is not None:
            self.notes[file] = note
        begun = {"of": self.of, "files": self.files, "notes": self.notes}
        replace_text(self.path / BEGUN, json.dumps(begun, indent=1))

    def release(self, output: Path) -> None:
        """Give the folder the output's name."""
        sync_tree(self.path)
        # A kill between these has all of it made again, and they take no time.
        (self.path / BEGUN).unlink(missing_ok=True)
        (self.path / LOCK).unlink()
        self.path.rename(output)
        sync(output.parent)


def refuse_occupied(output: Path) -> None:
    """Refuse an output where something is.

    Raises:
        UserError: something other than an empty folder is there, or it has no name.
    """
    check_named(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            "there is something at the output already", where=str(output), fix="name a new folder, or remove it"
        )


def begun_folder(output: Path, doing: str) -> Path:
    """Where an output is made."""
    return output.with_name(f".{output.name}.{doing}")


@contextmanager
def workplace(output: Path, doing: str, of: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Workplace]:
    """The folder in which an output is made, kept by no other process, with what an earlier start has finished.

    Files that were damaged since, and all that is of something else, are removed. Where the block ends badly the folder
    stays, if any file in it is finished.

    Args:
        output: what is to be made.
        doing: a word for what is done, such as `merging`.
        of: what the content is made of, of JSON's types.
        say: is told of files that were found damaged and are made again.

    Raises:
        UserError: something is at the output already, or another process makes it.
    """
    refuse_occupied(output)
    folder = begun_folder(output, doing)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fix = "wait for it, or name another output"
        lock_alone(lock, UserError("another process is making it", where=str(output), fix=fix))
        place = _taken_up(folder, of, say)
        try:
            yield place
        finally:
            if folder.exists() and not place.files:
                shutil.rmtree(folder)


def _taken_up(folder: Path, of: Mapping[str, Any], say: Callable[[str], None]) -> Workplace:
    try:
        begun = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        begun = {}
    place = Workplace(folder, of)
    if begun.get("of") == json.loads(json.dumps(of)):
        place.files, place.notes = begun["files"], begun.get("notes", {})
    for damaged in wrong_files(folder, place.files):
        say(f"{damaged} is damaged and is made again")
        del place.files[damaged]
        place.notes.pop(damaged, None)
    for path in folder.iterdir():
        if path.name not in place.files and path.name != LOCK:
            path.unlink()
    return place
