"""Conversions in a process of their own in which, and in whose children, every open file and socket is written down.

Run by `audited`; the jobs come as JSON on the standard input, what became of them goes to the standard output.
"""

from __future__ import annotations

import json
import mimetypes
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUDIT = """
import json, os, socket, sys

log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
busy = False

def write(event, arguments):
    global busy
    if busy or not event.startswith(("open", "socket.", "os.listdir", "os.scandir", "os.link", "os.symlink", "os.exec")):
        return
    busy = True
    try:
        name = arguments[0] if arguments else None
        if event.startswith("socket."):
            # Pipes between processes are sockets of this machine.
            local = event == "socket.__new__" and arguments[1] in (-1, socket.AF_UNIX)
            told = [] if local else [event, repr(arguments[1:])]
        elif isinstance(name, str | bytes | os.PathLike):
            told = [event, os.path.realpath(os.fsdecode(name))]
        else:
            told = []
        if told:
            os.write(log, json.dumps(told).encode() + b"\\n")
    finally:
        busy = False

sys.addaudithook(write)
"""
"""A `sitecustomize` module, which every Python process imports first."""


@dataclass(frozen=True)
class Audited:
    """What the jobs gave (reports counted, or the error), what was opened in which way, and what was printed."""

    folder: str
    results: list[Any]
    events: list[tuple[str, str]]
    said: str

    def opened_outside(self, *roots: Path) -> list[tuple[str, str]]:
        """What was opened neither below the roots nor by Python for itself."""
        own = [
            self.folder,
            sys.prefix,
            sys.base_prefix,
            *sys.path,
            Path(__file__).parents[2],  # an editable install is on no path
            "/proc",
            "/dev/null",
            "/dev/urandom",
            *mimetypes.knownfiles,
        ]
        own += [name for _, name in self.events if name.startswith("/dev/shm/pym-")]  # memory that processes share  # noqa: S108
        allowed = [os.path.realpath(name) for name in (*own, *roots) if name]
        return [
            (event, name)
            for event, name in self.events
            if not event.startswith("socket.")
            and not any(name == root or name.startswith(f"{root}/") for root in allowed)
        ]

    @property
    def sockets(self) -> list[tuple[str, str]]:
        """What was done with sockets beyond this machine."""
        return [event for event in self.events if event[0].startswith("socket.")]


def audited(folder: Path, jobs: Sequence[dict[str, Any]], timeout: float = 120) -> Audited:
    """Convert; each job is a source, an output, and options of `ConversionOptions` (`media_roots` as texts)."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(AUDIT)
    log = folder / "audit.log"
    paths = [str(folder), *sys.path]
    ended = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(list(jobs)),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "AUDIT_LOG": str(log)},
    )
    assert ended.returncode == 0, ended.stderr
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    results = json.loads(ended.stdout.splitlines()[-1])
    return Audited(str(folder), results, [(event, name) for event, name in events], ended.stdout + ended.stderr)


def main() -> None:
    from aria_finetune.conversion import ConversionOptions, convert  # noqa: PLC0415 (seldom needed, and slow)
    from aria_finetune.errors import UserError  # noqa: PLC0415

    results: list[Any] = []
    for job in json.load(sys.stdin):
        options = job["options"] | {"media_roots": tuple(map(Path, job["options"].get("media_roots", ())))}
        try:
            report = convert(Path(job["source"]), Path(job["output"]), ConversionOptions(max_rejects=10**6, **options))
            results.append(report.to_dict())
        except UserError as error:
            results.append(str(error))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
