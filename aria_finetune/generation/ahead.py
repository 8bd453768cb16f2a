"""The next batch made while one is worked on. Knows nothing of either."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`make` of each item in order, one of them ahead, in a thread of its own; what it raises is raised in its place.

    Who stops early waits for what is being made, so that nobody works on with what may be closed by then.
    """
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Made] | None = None
        try:
            for item in items:
                coming, ready = pool.submit(make, item), coming
                if ready is not None:
                    yield ready.result()
            if coming is not None:
                yield coming.result()
        finally:
            pool.shutdown(cancel_futures=True)
