"""Writing a converted data set: shards, media, manifest, rejects and report, all of it or nothing.

The folder is made beside its final place and renamed when it is complete. The same source and options give the
same bytes, apart from the seconds in the report.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from aria_finetune import __version__
from aria_finetune.conversion.dataset import MANIFEST, REJECTS, REPORT, Shard, is_dataset, shard_name
from aria_finetune.conversion.engine import Accepted, Outcome, outcomes_of, problems_told
from aria_finetune.conversion.media_store import CopyingStore
from aria_finetune.conversion.options import SHOWN_REJECTS, ConversionOptions, ConversionReport, Reject
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.record import SCHEMA_VERSION
from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.provenance import hash_file
from aria_finetune.redaction import redact_values
from aria_finetune.staging import staged_folder

RECORDS_PER_SHARD = 100_000


def convert(source: Path, output: Path, options: ConversionOptions) -> ConversionReport:
    """Convert a source into the data set folder `output`, which must not exist or be empty.

    Raises:
        UserError: the source can't be read, `output` is in use, or the disk does not work. Nothing is left.
        TooManyRejects: more than `options.max_rejects`; they stand in `<output>.rejects.jsonl`, and nothing at
            `output`.
    """
    started = time.monotonic()
    output = Path(os.path.abspath(output))  # noqa: PTH100 (resolve() would follow a link at the output)
    if is_dataset(source):
        raise UserError("it is a converted data set already", where=str(source), fix="use it as it is")
    with problems_told(output), staged_folder(output) as folder:
        store = CopyingStore(folder)
        with _DatasetWriter(folder) as writer:
            for outcomes in outcomes_of(source, options, store):
                writer.add(outcomes)
        if writer.report.rejected > options.max_rejects:
            raise _too_many(writer, output, options.max_rejects)
        report = writer.report
        report.seconds = time.monotonic() - started
        _write_json(folder / MANIFEST, _manifest(source, options, writer, store))
        _write_json(folder / REPORT, report.to_dict())
    return report


@dataclass
class _DatasetWriter:
    folder: Path
    report: ConversionReport = field(default_factory=ConversionReport)
    shards: list[Shard] = field(default_factory=list)
    first_rejects: list[Reject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._files = ExitStack()
        self._rejects = self._files.enter_context((self.folder / REJECTS).open("wb"))
        self._open_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close_shard()
        self._files.close()

    def add(self, outcomes: list[Outcome]) -> None:
        self.report.source_records += 1
        for outcome in outcomes:
            if isinstance(outcome, Accepted):
                self._write(outcome)
            else:
                self._reject(outcome)

    def _write(self, accepted: Accepted) -> None:
        if self._in_shard == RECORDS_PER_SHARD:
            self._close_shard()
            self._open_shard()
        line = _line(accepted.record.to_dict())
        self._shard.write(line)
        self._hasher.update(line)
        self._in_shard += 1
        self.report.written += 1
        self.report.formats[accepted.record.source.format] += 1
        self.report.repairs.update(accepted.repairs)

    def _reject(self, reject: Reject) -> None:
        self._rejects.write(_line(redact_values(asdict(reject))))
        if len(self.first_rejects) < SHOWN_REJECTS:
            self.first_rejects.append(reject)
        self.report.rejected += 1
        self.report.formats[reject.id.split(":", 1)[0]] += 1
        self.report.reasons[reject.reason] += 1

    def _open_shard(self) -> None:
        self._shard: IO[bytes] = self._files.enter_context((self.folder / shard_name(len(self.shards))).open("wb"))
        self._hasher = hashlib.sha256()
        self._in_shard = 0

    def _close_shard(self) -> None:
        self._shard.close()
        self.shards.append(Shard(shard_name(len(self.shards)), self._in_shard, self._hasher.hexdigest()))


def _too_many(writer: _DatasetWriter, output: Path, allowed: int) -> TooManyRejects:
    aside = output.with_name(f"{output.name}.rejects.jsonl")
    (writer.folder / REJECTS).replace(aside)
    report = writer.report
    shown = "".join(f"\n  {reject.describe()}" for reject in writer.first_rejects)
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(report.reasons.items()))
    return TooManyRejects(
        f"{report.rejected} of {report.read} conversations were rejected, {allowed} allowed ({counts}){shown}",
        where=str(output),
        fix=f"all of them are in {aside}; mend the source, or allow more with --max-rejects {report.rejected}",
    )


def _manifest(source: Path, options: ConversionOptions, writer: _DatasetWriter, store: CopyingStore) -> dict[str, Any]:
    report, file = writer.report, sources.locate(source)
    return {
        "schema_version": SCHEMA_VERSION,
        "converter_version": __version__,
        "counts": {
            "source_records": report.source_records,
            "read": report.read,
            "written": report.written,
            "rejected": report.rejected,
            "media_files": store.files,
            "media_bytes": store.size_bytes,
        },
        "shards": [asdict(shard) for shard in writer.shards],
        "options": options.to_dict(),
        "source": {"file": file.name, "bytes": file.stat().st_size, "sha256": hash_file(file)},
    }


def _line(value: dict[str, Any]) -> bytes:
    # A detail may quote a lone surrogate; as an escape it is still JSON.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(redact_values(value), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
