"""A file of answers that survives a kill: a JSON object a line in the order of the prompts, and beside it how they were made.

Lines are only ever added; one that was torn is taken back when the work goes on. It goes on with the same model, prompts and
settings, or not at all. Knows files, not models.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from aria_finetune.errors import UserError
from aria_finetune.provenance import versions
from aria_finetune.redaction import redact, redact_values
from aria_finetune.staging import lock_alone, replace_text

NOTES = ".run.json"
"""The end of the name of the file beside the answers."""
FREE = ("batch_size",)
"""Settings that may differ when the work goes on: rounding aside, they change no answer."""
NAMES = ("model", "revision")
"""Settings that say where weights lie; which they are another says."""


class AnswerFile:
    """The rows that have a line, and those that get one; made by `open_answers`.

    `ids` are theirs in order, `refused` counts those without an answer, `torn` says whether a torn line was taken back, `notes` what
    is not as it was before.
    """

    def __init__(self, file: IO[bytes], path: Path, settings: Mapping[str, Any], notes: Sequence[str]) -> None:
        self._file, self._path, self._settings, self.notes = file, path, settings, notes
        self.ids: list[str] = []
        self.refused = self.tokens = 0
        self.torn = self._mend()

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the lines of the next rows, and have the disk keep them."""
        kept = [redact_values(line) for line in lines]
        texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in kept]
        self._file.write("".join(texts).encode("utf-8", "backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())
        for line in kept:
            self._count(line)

    def is_of(self, row: int, name: str) -> bool:
        """Whether the line of a row is that of a prompt; ids that look like secrets are only written redacted."""
        return redact(self.ids[row]) == redact(name)

    def finish(self, seconds: float) -> None:
        """Say that every row has its line."""
        counts = {"rows": len(self.ids), "refused": self.refused, "tokens": self.tokens, "seconds": round(seconds, 3)}
        _note(self._path, "finished", self._settings, counts)

    def _count(self, line: Mapping[str, Any]) -> None:
        self.ids.append(line["id"])
        self.refused += "refused" in line
        self.tokens += line.get("tokens", 0)

    def _mend(self) -> bool:
        """Read what is there, without the last line if it was torn, which it says."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines()):
            try:
                value = json.loads(line)
                sound = value["row"] == number
                self._count(value)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise UserError(
                    f"the line is not that of row {number}",
                    where=f"{self._path}:{number + 1}",
                    fix="put the file back as it was written, or name another --output",
                )
        self._file.truncate(whole)
        self._file.seek(whole)
        return whole < len(content)


@contextmanager
def open_answers(path: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[AnswerFile]:
    """Begin a file of answers, or go on with one.

    Args:
        path: of the answers.
        settings: what they depend on, JSON values.
        resume: go on where a file is there, instead of refusing it.

    Raises:
        UserError: a file is there and is not to be gone on with, is not ours, is damaged, or was made with other settings; or another
            process writes to it.
    """
    plain = kept_settings(settings)
    notes = check_answers(path, plain, resume=resume)
    check_folder(path.parent)
    if not path.exists():
        _note(path, "running", plain)  # first, so that a file of answers is never without
    # One handle for all: a record lock is gone as soon as any handle of the file is closed.
    with path.open("r+b" if path.exists() else "x+b") as file:
        lock_alone(file, UserError("another process writes to it", where=str(path), fix="wait for it, or stop it"))  # type: ignore[arg-type]
        answers = AnswerFile(file, path, plain, notes)
        _note(path, "running", plain)
        yield answers


def kept_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are written beside the answers."""
    plain: dict[str, Any] = json.loads(json.dumps(redact_values(settings)))
    return plain


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not there, or in which no file can be made.

    Raises:
        UserError: it is one of these.
    """
    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder), fix="make it, or name another --output")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "check permissions and free space on the disk, or name another --output"
        raise UserError(f"no file can be made in it ({error.strerror})", where=str(folder), fix=fix) from error


def finished_counts(path: Path) -> dict[str, int] | None:
    """Rows, refused ones and tokens of a file of answers in which every row has its line; None where some have none."""
    try:
        notes = json.loads(path.with_name(path.name + NOTES).read_text(encoding="utf-8"))
        if notes["status"] != "finished":
            return None
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        rows, refused = len(lines), sum("refused" in line for line in lines)
        found = {"rows": rows, "refused": refused, "tokens": sum(line.get("tokens", 0) for line in lines)}
        return found if all(notes[key] == count for key, count in found.items()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # going on with it says what is wrong


def check_answers(path: Path, settings: Mapping[str, Any], *, resume: bool) -> list[str]:
    """What is not as it was when a file of answers was begun, and may be so; before any weight is read.

    Raises:
        UserError: as `open_answers`.
    """
    if not path.exists():
        return []
    if not resume or not path.is_file():
        fix = "go on with --resume, or name another --output" if path.is_file() else "name another --output"
        raise UserError("there is something at the output already", where=str(path), fix=fix)
    notes = path.with_name(path.name + NOTES)
    try:
        saved = dict(_flat(json.loads(notes.read_text(encoding="utf-8"))["settings"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"it is not a file that `generate` began: {notes.name} is not beside it, or can't be read",
            where=str(path),
            fix="name another --output",
        ) from error
    now = dict(_flat(settings))
    changed = {
        key: f"{key} was {saved.get(key)} and is {now.get(key)}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key) and key not in NAMES
    }
    refused = [line for key, line in changed.items() if key not in FREE]
    if refused:
        raise UserError(
            "the answers in it were made in another way:" + "".join(f"\n  {line}" for line in refused),
            where=str(path),
            fix="set these back, or name another --output",
        )
    return list(changed.values())


def _note(path: Path, status: str, settings: Mapping[str, Any], counts: Mapping[str, Any] | None = None) -> None:
    value = {"status": status, "settings": settings, "versions": versions(), **(counts or {})}
    replace_text(path.with_name(path.name + NOTES), json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{path}.{key}" if path else str(key))
