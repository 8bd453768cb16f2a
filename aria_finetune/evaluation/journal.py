"""Answers as they come, beside the output: an evaluation that is cut short goes on where it was.

Answers are greedy, so that those of the same model to the same rows are the same whenever they are given. The first line says
what the answers are of; where that is no longer so, none of them is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aria_finetune.errors import UserError
from aria_finetune.generation import Reply
from aria_finetune.staging import lock_alone, sync


@contextmanager
def kept_alone(output: Path) -> Iterator[None]:
    """Keep other evaluations away from an output, and from the answers beside it, until the block ends.

    The lock has a file of its own, which nothing else opens: a record lock is gone as soon as any handle of its file is closed.

    Raises:
        UserError: another process evaluates to it, or nothing can be written there.
    """
    path = output.with_name(f".{output.name}.lock")
    busy = UserError(
        "another process evaluates to this output", where=str(output), fix="wait for it, or name another --output"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(
            f"the output can't be written to: {error.strerror}", where=str(path), fix="choose another --output"
        ) from error
    with file:
        lock_alone(file, busy)
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise busy  # the other came to its end just now and took this file away, so that the next one has another
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def fingerprint(*facts: Any) -> str:
    """SHA-256 of facts as JSON; a folder or file among them stands for names, sizes and times of change."""
    text = json.dumps(facts, sort_keys=True, default=_stamp)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _stamp(path: object) -> object:
    if not isinstance(path, Path):
        raise TypeError(f"{type(path).__name__} says nothing of itself")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [str(path), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]


class Journal:
    """The answers given so far to an evaluation, by who gave them and by row.

    Args:
        output: the folder that the evaluation will be written to; the journal is a hidden file beside it.
        mark: the fingerprint of what is asked and of who answers.

    Raises:
        UserError: a line of an earlier start is damaged.
    """

    def __init__(self, output: Path, mark: str) -> None:
        self.path = output.with_name(f".{output.name}.answers.jsonl")
        self.mark = mark
        self.said: dict[str, dict[int, Reply]] = {}
        if not self._read():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"fingerprint": mark}) + "\n", encoding="utf-8")

    @property
    def count(self) -> int:
        """Answers that need not be given again."""
        return sum(map(len, self.said.values()))

    def of(self, who: str) -> dict[int, Reply]:
        """The answers of one of them by row."""
        return self.said.setdefault(who, {})

    def add(self, who: str, answers: Iterable[tuple[int, Reply]]) -> None:
        """Keep answers, on disk before anything else is asked."""
        given = dict(answers)
        lines = (
            json.dumps({"who": who, "row": row, "answer": one.text, "cut": one.cut}) + "\n"
            for row, one in given.items()
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        sync(self.path)
        self.of(who).update(given)

    def remove(self) -> None:
        """All is written elsewhere."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> bool:
        """Whether there is a journal of the same evaluation, whose answers are then known.

        The last line may have been cut off; it is cut from the file, so that what follows stands on a line of its own.

        Raises:
            UserError: another line is damaged.
        """
        if not self.path.is_file():
            return False
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                said = json.loads(line)
                if number > 1:
                    self.of(str(said["who"]))[int(said["row"])] = Reply(str(said["answer"]), cut=bool(said["cut"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    "the answers of an evaluation that was cut short are damaged",
                    where=f"{self.path}:{number}",
                    fix="remove the line to have its answer given again; if it is the first, remove the file",
                ) from error
            if number == 1 and said != {"fingerprint": self.mark}:
                return False
        if not whole:
            return False
        with self.path.open("r+b") as file:
            file.truncate(len(whole) + 1)
        return True
