"""One split of a conversion, from its records to its data files: the piece that engines hand out.

A split writes to files of its own, and its result last, so that one that was cut short is done again and one that
is finished is not. Nothing is shared between splits but the folder of media, which goes by content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aria_finetune.conversion.engine import Accepted, FileConverter
from aria_finetune.conversion.media_store import MediaStore, media_store
from aria_finetune.conversion.options import SHOWN_REJECTS, ConversionOptions, ConversionReport, Reject
from aria_finetune.conversion.plan import PlannedFile, Split
from aria_finetune.conversion.shards import shard_writer
from aria_finetune.data_formats import registry
from aria_finetune.redaction import redact_values
from aria_finetune.staging import replace_text

PARTS = "parts"
TOLD_EVERY = 1_000
"""Records between two words on progress."""

Progress = Callable[[int, int], None]
"""Takes how many records and how many rejects there are more."""


@dataclass(frozen=True, slots=True)
class SplitResult:
    """What became of a split: counts, its data files with records and SHA-256, and the first rejects."""

    report: ConversionReport
    shards: list[tuple[str, int, str]]
    first_rejects: list[Reject]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return {
            "report": self.report.to_dict(),
            "shards": self.shards,
            "first_rejects": [asdict(reject) for reject in self.first_rejects],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SplitResult:
        """Read what `to_dict` wrote."""
        shards = [(str(name), int(records), str(sha256)) for name, records, sha256 in data["shards"]]
        rejects = [Reject(**reject) for reject in data["first_rejects"]]
        return cls(ConversionReport.from_dict(data["report"]), shards, rejects)


@dataclass(frozen=True, slots=True)
class Work:
    """A split with all that is needed to convert it in another process; `folder` is that of the data set in the making."""

    form: str
    file: PlannedFile
    split: Split
    options: ConversionOptions
    folder: Path


class Worker:
    """Converts splits one after the other; keeps what the splits of one file share."""

    def __init__(self) -> None:
        self._made_for: tuple[object, ...] = ()
        self._converter: FileConverter | None = None
        self._store: MediaStore | None = None

    def run(self, work: Work, progress: Progress) -> SplitResult:
        """Convert a split and write its files; its result stands in the folder afterwards.

        Raises:
            FormatError: the file can't be read.
            WrongGuess: a JSON list has to be read as a whole.
            OSError: the disk does not work.
        """
        converter, store = self._prepared(work)
        result = _convert(work, converter, store, progress)
        replace_text(result_path(work.folder, work.split), json.dumps(result.to_dict(), ensure_ascii=True))
        return result

    def close(self) -> None:
        """Let go of what was kept."""
        if self._converter is not None:
            self._converter.__exit__()
            self._converter = None

    def _prepared(self, work: Work) -> tuple[FileConverter, MediaStore]:
        made_for = (work.form, work.file, work.options, work.folder)
        if self._converter is None or self._store is None or made_for != self._made_for:
            self.close()
            form = registry.get(work.form, registry.formats(work.options.converter))
            self._store = media_store(work.options.media_policy, work.folder)
            self._converter = FileConverter(work.file, form, work.options, self._store)
            self._made_for = made_for
        return self._converter, self._store


def result_path(folder: Path, split: Split) -> Path:
    """Where the result of a split stands."""
    return folder / PARTS / f"{split.number:05d}.json"


def rejects_path(folder: Path, split: Split) -> Path:
    """Where the rejects of a split stand."""
    return folder / PARTS / f"{split.number:05d}.rejects.jsonl"


def read_result(folder: Path, split: Split) -> SplitResult | None:
    """The result of a split that is finished; None where it is not."""
    try:
        return SplitResult.from_dict(json.loads(result_path(folder, split).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def reject_line(reject: Reject) -> bytes:
    """A line of `rejects.jsonl`. A detail may quote a lone surrogate; as an escape it is still JSON."""
    text = json.dumps(redact_values(asdict(reject)), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _convert(work: Work, converter: FileConverter, store: MediaStore, progress: Progress) -> SplitResult:
    report, first = ConversionReport(), list[Reject]()
    begun = work.folder / PARTS / f"{work.split.number:05d}"
    ending = work.options.pack
    shards = shard_writer(ending, lambda number: begun.with_name(f"{begun.name}-{number:03d}.{ending}"), store.read)
    with ExitStack() as files:
        rejects = files.enter_context(rejects_path(work.folder, work.split).open("wb"))
        files.callback(shards.close)
        told = 0
        for outcomes in converter.outcomes(work.split.extent, work.split.before):
            report.source_records += 1
            for outcome in outcomes:
                if isinstance(outcome, Accepted):
                    shards.add(outcome.record)
                    report.written += 1
                    if outcome.repairs:
                        report.repairs.update(outcome.repairs)
                else:
                    rejects.write(reject_line(outcome))
                    first += [outcome] if len(first) < SHOWN_REJECTS else []
                    report.rejected += 1
                    report.reasons[outcome.reason] += 1
            if report.source_records % TOLD_EVERY == 0:
                progress(TOLD_EVERY, report.rejected - told)
                told = report.rejected
        progress(report.source_records % TOLD_EVERY, report.rejected - told)
    report.formats[work.form] += report.read
    return SplitResult(report, [(os.path.basename(path), *rest) for path, *rest in shards.written], first)  # type: ignore[misc]  # noqa: PTH119
