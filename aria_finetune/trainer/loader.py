"""What passes between the loader's workers and the trainer: batches, errors, rows that could not be read.

Knows the collator's batches, not the model.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from aria_finetune.data.collation import BadRow
from aria_finetune.errors import TooManyRejects, UserError

Batch = dict[str, Any]
TRAINING, EVALUATION = "training", "evaluation"
MAX_IN_A_ROW = 32
"""Rows with media that may be unreadable one after the other; more of them mean a lost disk, not a few bad files."""


@dataclass(frozen=True)
class ErrorsAsBatches:
    """A collator that hands a user's error over as a batch.

    Raised in a worker of the loader, its message would arrive with the worker's traceback in it.
    """

    collator: Callable[[Sequence[Mapping[str, int]]], Batch]

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """The collator's batch, or `{"user_error": error}`."""
        try:
            return self.collator(features)
        except UserError as error:
            return {"user_error": error}


def end_workers() -> None:
    """End all worker processes of loaders.

    torch does it when the iterator over a loader is forgotten. An exception that somebody keeps keeps frames, and these the
    iterator; then a process that is about to end waits for workers that ignore its signals (`shield_worker`), forever.
    """
    if not multiprocessing.active_children():
        return  # all objects of a process are many, a tenth of a second of them
    for thing in gc.get_objects():
        if type(thing) is _MultiProcessingDataLoaderIter:
            thing._shutdown_workers()  # noqa: SLF001 (there is no public way, and nobody may know who holds it)


def real_tokens(batch: Batch) -> int:
    """Tokens of a batch that are not padding."""
    return int(batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel())


def raise_carried(batch: Batch) -> None:
    """Raise the error that a batch carries, if it does."""
    if "user_error" in batch:
        raise batch["user_error"]


def is_empty(batch: Batch) -> bool:
    """Whether no row of the batch could be read."""
    return "input_ids" not in batch


class SkippedRows:
    """Counts and names the rows that were left out because their media could not be read.

    Args:
        record: keeps an entry of them.
        say: prints a line.
    """

    def __init__(self, record: Callable[[Mapping[str, Any]], None], say: Callable[[str], None]) -> None:
        self._record = record
        self._say = say
        # Apart, because the media of evaluation may lie on another disk, which is still there.
        self._in_a_row = {TRAINING: 0, EVALUATION: 0}
        self._of_evaluation: list[dict[str, Any]] = []
        self.reasons: Counter[str] = Counter()

    def take(self, batch: Batch, step: int, *, training: bool) -> None:
        """Take the bad rows out of a batch, as it is about to be used in optimizer step `step`.

        Raises:
            TooManyRejects: more than 32 rows with media in a row could not be read.
        """
        bad: Sequence[BadRow] = batch.pop("bad_media", ())
        for row in bad:
            entry = {"step": step, "training": training, **asdict(row)}
            if training:
                self.reasons[row.reason] += 1
                self._record(entry)
            else:
                self._of_evaluation.append(entry)
            self._say(f"step {step}: skipped row {row.id} ({row.where}): {row.media}: {row.reason}: {row.detail}")
        use = TRAINING if training else EVALUATION
        # Where in a batch the bad ones lay is not known: one that could be read is enough to say that the disk is there.
        self._in_a_row[use] = 0 if "tile_order" in batch else self._in_a_row[use] + len(bad)
        if self._in_a_row[use] > MAX_IN_A_ROW:
            last = bad[-1]
            raise TooManyRejects(
                f"{self._in_a_row[use]} rows one after the other could not be read, the last at {last.where}: "
                f"{last.media}: {last.reason}: {last.detail}",
                fix="see whether the media are still there; --resume goes on from the last checkpoint",
            )

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation, whose rows are recorded at its end: one that a signal breaks off is done anew."""
        self._of_evaluation, self._in_a_row[EVALUATION] = [], 0
        yield
        for entry in self._of_evaluation:
            self._record(entry)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to count on."""
        return {"reasons": dict(self.reasons), "in_a_row": self._in_a_row[TRAINING]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.reasons = Counter(state["reasons"])
        self._in_a_row[TRAINING] = state["in_a_row"]
