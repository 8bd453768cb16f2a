"""How much of its time training waits for data. Knows batches by their coming alone, and nothing of what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
MUCH = 0.2
"""A share of waiting from which on it is worth a hint."""
PATIENCE_SECONDS = 60.0
"""So long, and for two log lines, it must be as much: the first batches of a run are always waited for."""


class DataWait:
    """Adds up the seconds until batches come; advises, once, where they take long.

    Args:
        workers: how many processes of the loader make batches.
        say: prints a line.
    """

    def __init__(self, workers: int, say: Callable[[str], None]) -> None:
        self._workers = workers
        self._say: Callable[[str], None] | None = say
        self._waited = 0.0
        self._high: list[float] = []

    def begin(self) -> None:
        """Count from now on."""
        self._waited = 0.0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time until each is there is added up."""
        source = iter(batches)
        while True:
            began = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - began
            yield batch

    def take(self, seconds: float) -> float:
        """The share (0 to 1) of the last `seconds` that was waited; the next one counts from here."""
        share = min(self._waited / seconds, 1.0)
        self._waited = 0.0
        self._high = [*self._high, seconds] if share > MUCH else []
        if self._say is not None and len(self._high) > 1 and sum(self._high) >= PATIENCE_SECONDS:
            self._say(f"{share:.0%} of the time is spent waiting for data: {self._remedy()}")
            self._say = None
        return share

    def _remedy(self) -> str:
        more = f"raise train.dataloader_num_workers (it is {self._workers})"
        return f"{more}, or keep what is made of pictures with data.cache_image_features"
