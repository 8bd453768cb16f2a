"""Watching processes from outside: how much memory a tree of them takes, and which files of a folder are opened.

Linux only, as are the isolated readers.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_EVENT = struct.Struct("iIII")
_POLL_SECONDS = 0.01
_FORGET_PEAK = "5"
"""What written to `clear_refs` of a process makes its peak its present use (proc(5))."""


class MemoryWatch:
    """Samples a process and all that it has started, until it is closed."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._peaks: dict[int, float] = {}
        self._base = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.restart()
        self._thread.start()

    def restart(self) -> None:
        """Take what is in use now for the base."""
        with self._lock:
            used = {}
            for process in tree(self._process):
                try:
                    Path(f"/proc/{process}/clear_refs").write_text(_FORGET_PEAK, encoding="ascii")
                except OSError:
                    continue
                used[process] = memory_mib(process)
            self._base = sum(used.values())
            self._peaks = used

    def grown_mib(self) -> float:
        """How much more than at the start was in use at most: no less, for each process is taken at its own peak."""
        self._sample()
        with self._lock:
            return sum(self._peaks.values()) - self._base

    def close(self) -> None:
        """Stop."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            command = _command(self._process)
            for process in tree(self._process):
                # One that has just been forked shares all that it seems to have.
                if process != self._process and _command(process) == command:
                    continue
                self._peaks[process] = max(self._peaks.get(process, 0.0), memory_mib(process))


def tree(process: int) -> Iterator[int]:
    """A process and all below it."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found = children.read_text(encoding="ascii").split()
        except OSError:
            continue
        for child in found:
            yield from tree(int(child))


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def memory_mib(process: int) -> float:
    """The most memory that a process has used; 0 if it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


@contextmanager
def opened_in(folder: Path) -> Iterator[list[str]]:
    """Names of what is opened or read in a folder by anyone, native code included; complete when the block ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN | _IN_ACCESS) < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch")
    names: list[str] = []
    try:
        yield names
        names += _read_events(descriptor)
    finally:
        os.close(descriptor)


def _read_events(descriptor: int) -> Iterator[str]:
    while True:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        place = 0
        while place < len(data):
            *_, length = _EVENT.unpack_from(data, place)
            place += _EVENT.size + length
            yield data[place - length : place].rstrip(b"\0").decode() or "the folder"
