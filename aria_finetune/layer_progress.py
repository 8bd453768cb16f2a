"""What a person sees while a model is loaded or quantised: how many of its layers are done."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0
"""Without a terminal a line is printed at most this often; a model that takes less time is loaded without a word."""


class LayerProgress:
    """A bar on a terminal, a line now and then elsewhere; called with how many are done, and of how many."""

    def __init__(self, what: str, console: Console, unit: str = "layers") -> None:
        self._what, self._unit = what, unit
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._printed_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (
                TextColumn(self._what),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self._unit),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show it."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._printed_at >= PLAIN_SECONDS:
            self.say(f"{self._what}: {done} of {total} {self._unit}")
            self._printed_at = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, highlight=False)
