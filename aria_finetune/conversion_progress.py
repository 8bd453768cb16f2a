"""What a person sees while a conversion goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from aria_finetune.conversion.engines import Engine

LINE_SECONDS = 10.0
"""Without a terminal a line is printed this often."""

_REFRESH_SECONDS = 0.5


class ConversionProgress:
    """Shows records, records a second, rejects and the time left of a conversion."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def __call__(self, engine: Engine, total: int | None) -> Iterator[None]:
        """Show the progress of `engine` as long as the block lasts; `total` records are to be done, if that is known."""
        done = threading.Event()
        show = self._show_live if self._console.is_terminal else self._print_lines
        thread = threading.Thread(target=show, args=(engine, total, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _show_live(self, engine: Engine, total: int | None, done: threading.Event) -> None:
        started = time.monotonic()
        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            while not done.wait(_REFRESH_SECONDS):
                live.update(Text(describe(*engine.progress(), total, time.monotonic() - started)), refresh=True)

    def _print_lines(self, engine: Engine, total: int | None, done: threading.Event) -> None:
        started = time.monotonic()
        while not done.wait(LINE_SECONDS):
            line = describe(*engine.progress(), total, time.monotonic() - started)
            self._console.print(line, highlight=False, soft_wrap=True)


def describe(records: int, rejects: int, total: int | None, seconds: float) -> str:
    """One line of progress after that many seconds."""
    rate = records / max(seconds, 1e-9)
    of = f"/{total:,}" if total else ""
    line = f"{records:,}{of} records  {rate:,.0f} records/s  {rejects:,} rejected"
    if total and records:
        left = int(max(total - records, 0) / rate)
        line += f"  {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
    return line
