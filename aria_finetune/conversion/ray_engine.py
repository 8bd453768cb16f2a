"""The pieces of a conversion on several machines, by Ray. All of them must see source and output at the same paths."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aria_finetune.conversion.work import SplitResult, Work, Worker
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.reading.extents import Extent, Tally
from aria_finetune.data_formats.reading.sources import SourceFile
from aria_finetune.errors import UserError

_END_SECONDS = 60.0
"""How long to wait for tasks to end that are of no use any more; one may hang on a network disk."""

_POLL_SECONDS = 0.5
"""How long Ray waits at a time: it heeds no signal meanwhile."""


class RayEngine:
    """One task for each split, in the cluster that `RAY_ADDRESS` names or on this machine with `workers` processes."""

    def __init__(self, workers: int) -> None:
        try:
            import ray  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise UserError("ray is not installed", fix="pip install 'aria-finetune[ray]'") from error
        self._ray: Any = ray
        self._done = [0, 0]
        self._here = Path.cwd()
        if not ray.is_initialized():
            # The cluster's size is its own when there is one.
            address = os.environ.get("RAY_ADDRESS")
            size = {} if address else {"num_cpus": workers}
            with _handlers_kept():
                ray.init(address=address, include_dashboard=False, log_to_driver=False, **size)

    def count(self, extents: Sequence[tuple[SourceFile, Extent]]) -> Iterable[Tally]:
        """The tallies of extents, in their order."""
        count = self._ray.remote(_count)
        tasks = [count.remote(self._here, *extent) for extent in extents]
        tallies = dict(self._results(tasks))
        return [tallies[task] for task in tasks]

    def convert(self, works: Sequence[Work]) -> Iterator[SplitResult]:
        """The results of splits, in any order."""
        self._done = [0, 0]
        convert = self._ray.remote(_convert)
        for _, result in self._results([convert.remote(self._here, work) for work in works]):
            self._done = [self._done[0] + result.report.source_records, self._done[1] + result.report.rejected]
            yield result

    def _results(self, tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Tasks with what they gave, as they come. Where one fails all are ended: none may go on writing beside what
        comes next.
        """
        waiting = tasks
        try:
            while waiting:
                with _signals_told():
                    ready, waiting = self._ray.wait(waiting, timeout=_POLL_SECONDS)
                    results = [(task, self._result(task)) for task in ready]
                yield from results
        except BaseException:
            for task in waiting:
                self._ray.cancel(task, force=True)
            if waiting:
                self._ray.wait(waiting, num_returns=len(waiting), timeout=_END_SECONDS)
            raise

    def _result(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            fix = "start it again, which goes on with what is not done yet"
            raise UserError(f"a process of the conversion was lost: {error!s:.300}", fix=fix) from error

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


def _count(here: Path, file: SourceFile, extent: Extent) -> Tally:
    os.chdir(here)
    return sources.count(file, extent)


def _convert(here: Path, work: Work) -> SplitResult:
    os.chdir(here)  # paths may be relative
    worker = Worker()
    try:
        return worker.run(work, lambda _records, _rejects: None)
    finally:
        worker.close()
