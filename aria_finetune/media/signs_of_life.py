"""Signs that long work on a medium goes on, for whoever waits and would take silence for a hang.

Knows neither who works nor who waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_listener: Callable[[], None] | None = None


def give_sign() -> None:
    """Say that a step has been done; costs next to nothing where nobody listens."""
    if _listener is not None:
        _listener()


@contextmanager
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """Call `listener` at every sign within the block. For one thread only."""
    global _listener  # noqa: PLW0603 (one process works on one medium)
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
