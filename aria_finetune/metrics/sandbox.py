"""A Python program in a process of its own, with limits on time, memory, files and, where the system can, the network.

What a model writes is run as it is. The limits keep an accident from spreading; they are no wall against a program that
means harm, which is why nothing here is reached without being asked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

_MIB = 2**20
_OUT_OF_TIME = 152
"""What a shell says of a process that SIGXCPU ended: 128 + 24."""

# Runs the program of its first argument and says a word when that came to its end: neither an exit in the middle nor a
# program that ends well because it was cut off counts as passing. The word comes by standard input, which is empty
# when the program begins: arguments could be read in /proc. The limits can't be raised again.
# A signal that ended it is not always passed on by what keeps it from the network, and of the first process there it is
# ignored where nobody listens: so it listens, and a second is left before the end that can't be listened to.
_RUNNER = f"""
import os, resource, signal, sys
signal.signal(signal.SIGXCPU, lambda *_, end=os._exit: end({_OUT_OF_TIME}))
word = os.read(0, 64)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
program, *limits = sys.argv[1:]
sys.argv = [program]
names = ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NPROC")
for name, limit in zip(names, map(int, limits)):
    kind = getattr(resource, name)
    most = resource.getrlimit(kind)[1]
    ceiling = limit + 1 if name == "RLIMIT_CPU" else limit
    if most != resource.RLIM_INFINITY:
        limit, ceiling = min(limit, most), min(ceiling, most)
    try:
        resource.setrlimit(kind, (limit, ceiling))
    except (ValueError, OSError):
        pass
del resource, signal, sys
said = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
del os
exec(compile(open(program, encoding="utf-8").read(), "answer.py", "exec"), {{"__name__": "__main__"}})
__import__("os").write(said, word)
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """`cpu_seconds` of work and `wall_seconds` in all, `memory_mib` of addresses, `file_mib` for each file written."""

    cpu_seconds: int = 10
    wall_seconds: float = 20.0
    memory_mib: int = 2048
    file_mib: int = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the program ran to its end without an error; if not, `reason` is `time`, or the last line it complained with."""

    passed: bool
    reason: str = ""


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Run a program in a folder that is then removed, without this process's environment."""
    within = limits or Limits()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "answer.py"
        file.write_text(program, encoding="utf-8", errors="replace")
        return _outcome(file, within)


def _outcome(file: Path, limits: Limits) -> Outcome:
    word = secrets.token_hex(16).encode()
    numbers = (limits.cpu_seconds, limits.memory_mib * _MIB, limits.file_mib * _MIB, 0, 0)
    command = [*_without_network(), sys.executable, "-I", "-c", _RUNNER, str(file), *map(str, numbers)]
    before = _seconds_worked()
    with (file.parent / "said").open("wb+") as said, (file.parent / "complained").open("wb+") as complained:
        process = subprocess.Popen(  # noqa: S603 (this is what it is for)
            command,
            cwd=file.parent,
            env={"PATH": os.defpath, "HOME": str(file.parent), "TMPDIR": str(file.parent), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=complained,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(BrokenPipeError), cast("IO[bytes]", process.stdin) as words:
                words.write(word)
            process.wait(limits.wall_seconds)
        except subprocess.TimeoutExpired:
            return Outcome(passed=False, reason="time")
        finally:
            _end(process)
        said.seek(0)
        if process.returncode == 0 and said.read(len(word) + 1) == word:
            return Outcome(passed=True)
        timed_out = process.returncode == _OUT_OF_TIME or _seconds_worked() - before > 0.75 * limits.cpu_seconds
        complained.seek(0)
        lines = complained.read(64_000).decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit {process.returncode}")
        return Outcome(passed=False, reason="time" if timed_out else last[:200])


def _seconds_worked() -> float:
    """Processor time of all processes started here that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


@functools.cache
def _without_network() -> tuple[str, ...]:
    """What starts a program in an empty network, where all that it starts ends with it, if this system lets users do so."""
    tool = shutil.which("unshare")
    if tool is None:
        return ()
    command = (tool, "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--")
    tried = subprocess.run([*command, sys.executable, "-I", "-c", ""], capture_output=True, check=False)  # noqa: S603
    return command if tried.returncode == 0 else ()


def has_network() -> bool:
    """Whether programs reach the network, because this system has no way to keep them from it."""
    return not _without_network()
