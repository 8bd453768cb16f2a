"""Who runs the pieces of a conversion: this process, several processes of this machine, or several machines.

An engine only hands pieces out and gives results back as they come; whatever order that is, the result is the same.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Protocol, TypeVar

from aria_finetune.conversion.options import EngineName
from aria_finetune.conversion.work import SplitResult, Work, Worker
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.reading.extents import Extent, Tally
from aria_finetune.data_formats.reading.sources import SourceFile
from aria_finetune.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_FORK = get_context("fork")
_PR_SET_PDEATHSIG = 1


class Engine(Protocol):
    """Runs pieces of work."""

    def count(self, extents: Sequence[tuple[SourceFile, Extent]]) -> Iterable[Tally]:
        """The tallies of extents, in their order."""
        ...

    def convert(self, works: Sequence[Work]) -> Iterator[SplitResult]:
        """The results of splits, in any order; processes it needs are there when it returns."""
        ...

    def progress(self) -> tuple[int, int]:
        """Records and rejects so far, those of unfinished splits among them where the engine knows."""
        ...


@contextmanager
def engine(name: EngineName, workers: int) -> Iterator[Engine]:
    """The engine called `name` with that many processes.

    Raises:
        UserError: it is not installed.
    """
    if name == "ray":
        from aria_finetune.conversion.ray_engine import RayEngine  # noqa: PLC0415 (an extra)

        yield RayEngine(workers)
        return
    made = LocalEngine(workers)
    try:
        yield made
    finally:
        made.close()


class LocalEngine:
    """Processes of this machine; with one worker this process itself.

    The processes start with the first work for several of them. Whatever goes wrong ends them all, for none may go on
    writing beside what comes next.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._futures: Sequence[Future[Any]] = ()
        self._records, self._rejects = _FORK.Value("Q", 0), _FORK.Value("Q", 0)

    def count(self, extents: Sequence[tuple[SourceFile, Extent]]) -> Iterable[Tally]:
        """The tallies of extents, in their order."""
        if self._workers < 2 or len(extents) < 2:
            return (sources.count(*extent) for extent in extents)
        with self._pool_for_all():
            return [future.result() for future in self._submit(_count, extents)]

    def convert(self, works: Sequence[Work]) -> Iterator[SplitResult]:
        """The results of splits, in any order."""
        self._records.value = self._rejects.value = 0
        if self._workers < 2 or len(works) < 2:
            return self._convert_here(works)
        # Not when the first result is asked for: there may be threads by then, which forks do not bear.
        with self._pool_for_all():
            futures = self._submit(_convert, works)
        return self._results(futures)

    def progress(self) -> tuple[int, int]:
        """Records and rejects of this call of `convert` so far."""
        # Without the locks: a process that was killed may hold one.
        return int(self._records.get_obj().value), int(self._rejects.get_obj().value)

    def close(self) -> None:
        """End the processes; what they are at is cut short."""
        if self._pool is None:
            return
        if not all(future.done() for future in self._futures):
            for process in list(self._pool._processes.values()):  # noqa: SLF001 (kill_workers() is of Python 3.14)
                process.kill()
        self._pool.shutdown(wait=True)
        self._pool, self._futures = None, ()

    def _results(self, futures: Sequence[Future[SplitResult]]) -> Iterator[SplitResult]:
        with self._pool_for_all():
            for future in as_completed(futures):
                yield future.result()

    def _submit(self, function: Callable[[T], R], items: Sequence[T]) -> Sequence[Future[R]]:
        if self._pool is None:
            self._records, self._rejects = _FORK.Value("Q", 0), _FORK.Value("Q", 0)
            shared = (os.getpid(), self._records, self._rejects)
            self._pool = ProcessPoolExecutor(self._workers, _FORK, initializer=_begin, initargs=shared)
        futures: list[Future[R]] = []
        self._futures = futures
        futures.extend(self._pool.submit(function, item) for item in items)
        return futures

    @contextmanager
    def _pool_for_all(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            self.close()
            raise UserError(
                "a process of the conversion was ended from outside, perhaps for want of memory",
                fix="start it again, which goes on with what is not done yet; --workers 1 needs the least memory",
            ) from error
        except BaseException:
            self.close()
            raise

    def _convert_here(self, works: Sequence[Work]) -> Iterator[SplitResult]:
        worker = Worker()
        tell = _teller(self._records, self._rejects)
        try:
            for work in works:
                yield worker.run(work, tell)
        finally:
            worker.close()


_worker: Worker | None = None
_tell: Callable[[int, int], None]


def _begin(parent: int, records: Synchronized[int], rejects: Synchronized[int]) -> None:
    """Set up a process of the pool."""
    global _worker, _tell
    # Orphans would go on writing into a folder that another process has taken up.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    # Ctrl-C is for the parent, which ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Records hold no cycles, and looking for them takes a fifth of the time.
    gc.disable()
    _worker, _tell = Worker(), _teller(records, rejects)


def _teller(records: Synchronized[int], rejects: Synchronized[int]) -> Callable[[int, int], None]:
    def tell(more_records: int, more_rejects: int) -> None:
        with records.get_lock():
            records.value += more_records
        if more_rejects:
            with rejects.get_lock():
                rejects.value += more_rejects

    return tell


def _count(extent: tuple[SourceFile, Extent]) -> Tally:
    return sources.count(*extent)


def _convert(work: Work) -> SplitResult:
    assert _worker is not None  # noqa: S101 (set by _begin)
    return _worker.run(work, _tell)


def default_workers() -> int:
    """As many processes as there are processors to run on."""
    return len(os.sched_getaffinity(0))
