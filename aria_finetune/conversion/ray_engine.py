"""The pieces of a conversion on several machines, by Ray. All of them must see source and output at the same paths."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aria_finetune.conversion.work import SplitResult, Work, Worker
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.reading.extents import Extent, Tally
from aria_finetune.data_formats.reading.sources import SourceFile
from aria_finetune.errors import UserError

_END_SECONDS = 60.0
"""How long to wait for tasks to end that are of no use any more; one may hang on a network disk."""


class RayEngine:
    """One task for each split, in the cluster that `RAY_ADDRESS` names or on this machine with `workers` processes."""

    def __init__(self, workers: int) -> None:
        try:
            import ray  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise UserError("ray is not installed", fix="pip install 'aria-finetune[ray]'") from error
        self._ray: Any = ray
        self._done = [0, 0]
        if not ray.is_initialized():
            # The cluster's size is its own when there is one.
            import os  # noqa: PLC0415

            address = os.environ.get("RAY_ADDRESS")
            size = {} if address else {"num_cpus": workers}
            with _handlers_kept():
                ray.init(address=address, include_dashboard=False, log_to_driver=False, **size)

    def count(self, extents: Sequence[tuple[SourceFile, Extent]]) -> Iterable[Tally]:
        """The tallies of extents, in their order."""
        count = self._ray.remote(sources.count)
        with _signals_told():
            return self._ray.get([count.remote(*extent) for extent in extents])  # type: ignore[no-any-return]

    def convert(self, works: Sequence[Work]) -> Iterator[SplitResult]:
        """The results of splits, in any order."""
        self._done = [0, 0]
        convert = self._ray.remote(_convert)
        waiting = [convert.remote(work) for work in works]
        try:
            while waiting:
                with _signals_told():
                    ready, waiting = self._ray.wait(waiting)
                for task in ready:
                    result = self._result(task)
                    self._done = [self._done[0] + result.report.source_records, self._done[1] + result.report.rejected]
                    yield result
        except BaseException:
            self._end(waiting)
            raise

    def _result(self, task: Any) -> SplitResult:
        try:
            with _signals_told():
                return self._ray.get(task)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def _end(self, tasks: Sequence[Any]) -> None:
        """None may go on writing beside what comes next."""
        for task in tasks:
            self._ray.cancel(task, force=True)
        self._ray.wait(tasks, num_returns=len(tasks), timeout=_END_SECONDS) if tasks else None

    def progress(self) -> tuple[int, int]:
        """Records and rejects of finished splits."""
        return self._done[0], self._done[1]


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for a crash of this process; it is ours."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_told() -> Iterator[None]:
    """What the handler of a signal raises while Ray waits comes out of it as the cause of a `SystemError`."""
    try:
        yield
    except SystemError as error:
        raise error.__cause__ or error from None


def _convert(work: Work) -> SplitResult:
    worker = Worker()
    try:
        return worker.run(work, lambda _records, _rejects: None)
    finally:
        worker.close()
