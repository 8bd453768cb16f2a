"""SIGINT and SIGTERM: the first asks a run to stop, the second stops it at once.

Knows signals, nothing of what is interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_BASE = 128
"""A shell reports a process ended by signal N as 128 + N."""


class Interrupted(BaseException):
    """The user or the system asked us to stop. Not an `Exception`, so that no library takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = EXIT_BASE + number


class Interruption:
    """Handles the signals inside a `with` block; outside of one it is never asked.

    At first a signal raises `Interrupted` wherever the program is, so that everything begun is undone. Within
    `deferred()` it is only remembered, and whoever works there asks `check()` at places where stopping is safe. A
    second signal ends the process at once in either case.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._deferring = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread only; elsewhere the program around us handles signals.
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def check(self) -> None:
        """Stop here if asked to.

        Raises:
            Interrupted: a signal came.
        """
        if self.asked is not None:
            raise Interrupted(self.asked)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block, the first signal is remembered instead of raised."""
        self.check()
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked worker: it ends when its parent does
        if self.asked is not None:
            os._exit(EXIT_BASE + number)
        self.asked = number
        if not self._deferring:
            raise Interrupted(number)
        _say(f"\n{signal.Signals(number).name}: stopping after this step, once its checkpoint is sealed; ")
        _say("a second signal stops at once\n")


def shield_worker(worker: int) -> None:  # noqa: ARG001 (the loader passes its number)
    """Let a loader's worker live as long as its parent: a signal to the whole group would end it in mid-step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    # Printing from a handler may meet a print that is under way; a bare write can't.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
