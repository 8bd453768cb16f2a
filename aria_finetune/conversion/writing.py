"""Converting a source into a data set: plan, run the splits, put the parts together, all of it or nothing.

Work goes on in a hidden folder beside the output and takes its name when it is complete. Started again after it was
cut short, a conversion goes on with the splits that are not finished, as long as source and options are the same. The
same source and options give the same bytes, however many processes there are and however often it was cut short,
apart from the seconds in the report.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from aria_finetune import __version__
from aria_finetune.conversion.dataset import MANIFEST, REJECTS, REPORT, Shard, is_dataset, shard_name
from aria_finetune.conversion.engine import problems_told
from aria_finetune.conversion.engines import Engine, LocalEngine
from aria_finetune.conversion.media_store import MEDIA_FOLDER
from aria_finetune.conversion.options import SHOWN_REJECTS, ConversionOptions, ConversionReport, Reject
from aria_finetune.conversion.plan import ConversionPlan, PlannedFile, Split, cut_work, find_files
from aria_finetune.conversion.work import PARTS, SplitResult, Work, read_result, rejects_path
from aria_finetune.conversion.workplace import (
    check_output,
    clear,
    full_disk_told,
    read_plan,
    remove_incoming,
    take_place,
    take_up,
    working_folder,
)
from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.format import Format
from aria_finetune.data_formats.reading.json_array import WrongGuess
from aria_finetune.data_formats.record import SCHEMA_VERSION
from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.provenance import fingerprint_objects, hash_file
from aria_finetune.redaction import redact_values

TAILS = (1, 2, None)
"""By how much of the end of a record JSON lists are cut, one after the other until a guess holds."""

Watch = Callable[[Engine, int | None], AbstractContextManager[object]]
"""Shows the progress of an engine as long as its block lasts; how many records there are to do, if that is known."""


def convert(
    source: Path, output: Path, options: ConversionOptions, engine: Engine | None = None, watch: Watch | None = None
) -> ConversionReport:
    """Convert a source into the data set folder `output`, which must not exist or be empty.

    Args:
        source: a file or folder in a known format.
        output: where the data set is to be. One that a conversion with too many rejects left there is replaced.
        options: how to read and what to make.
        engine: runs the splits; this process, if none is given.
        watch: is called with the engine when the splits are about to run, to show their progress.

    Raises:
        UserError: the source can't be read, `output` is in use, or the disk does not work. Nothing is left at `output`.
        TooManyRejects: more than `options.max_rejects`. The data set is there, with all that was good, and says so: it is
            not read for training.
    """
    started = time.monotonic()
    output = Path(os.path.abspath(output))  # noqa: PTH100 (resolve() would follow a link at the output)
    if is_dataset(source):
        raise UserError("it is a converted data set already", where=str(source), fix="use it as it is")
    check_output(output)
    _ = options.media_policy  # refused here, before anything is made
    with problems_told(source), working_folder(output) as folder, full_disk_told(folder, output):
        results, plan = _run(source, folder, options, engine or LocalEngine(1), watch)
        check_output(output)  # hours may have gone by
        report = _put_together(results, plan, folder, started)
        take_place(folder, output)
    if report.rejected > options.max_rejects:
        raise _too_many(report, results, output, options.max_rejects)
    return report


def _run(
    source: Path, folder: Path, options: ConversionOptions, engine: Engine, watch: Watch | None
) -> tuple[list[SplitResult], ConversionPlan]:
    form, files = find_files(source, options)
    for tail in TAILS[_refuted(form, files, options, folder) :]:
        plan = cut_work(form, files, options, engine.count, tail)
        take_up(folder, _described(plan, tail))
        finished = {split.number: result for split in plan.splits if (result := read_result(folder, split))}
        todo = [split for split in plan.splits if split.number not in finished]
        done = sum(result.report.source_records for result in finished.values())
        try:
            results = engine.convert([_work(plan, split, folder) for split in todo])
            with _watched(engine, watch, plan, done):
                for _ in results:
                    pass
            break
        except WrongGuess:
            if tail is None:
                raise
        except FormatError:
            # What is wrong with the source will still be wrong next time.
            clear(folder)
            raise
    every = [read_result(folder, split) for split in plan.splits]
    return [result for result in every if result is not None], plan


def _work(plan: ConversionPlan, split: Split, folder: Path) -> Work:
    return Work(plan.format, plan.files[split.file], split, plan.options, folder)


def _refuted(form: Format, files: Sequence[PlannedFile], options: ConversionOptions, folder: Path) -> int:
    """How many of the `TAILS` an earlier start of the very same conversion has found wrong."""
    begun = read_plan(folder) or {}
    now = _described(ConversionPlan(form.name, tuple(files), (), options), begun.get("tail"))
    return TAILS.index(begun["tail"]) if begun | {"splits": []} == now else 0


def _described(plan: ConversionPlan, tail: int | None) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(json.dumps({"version": __version__, "tail": tail, **plan.describe()}))
    return described


@contextmanager
def _watched(engine: Engine, watch: Watch | None, plan: ConversionPlan, done: int) -> Iterator[None]:
    if watch is None:
        yield
        return
    with watch(engine, None if plan.records is None else plan.records - done):
        yield


def _put_together(
    results: Sequence[SplitResult], plan: ConversionPlan, folder: Path, started: float
) -> ConversionReport:
    """Name the parts as a data set has them; done again from any point, it ends the same."""
    report = ConversionReport()
    for result in results:
        report.add(result.report)
    shards = _shards(results, folder, plan.options.pack)
    with (folder / REJECTS).open("wb") as rejects:
        for split in plan.splits:
            _append(rejects_path(folder, split), rejects)
    remove_incoming(folder)
    if plan.options.pack == "parquet":
        shutil.rmtree(folder / MEDIA_FOLDER, ignore_errors=True)
    report.seconds = time.monotonic() - started
    _write_json(folder / MANIFEST, _manifest(report, shards, plan, folder))
    _write_json(folder / REPORT, report.to_dict())
    return report


def _shards(results: Sequence[SplitResult], folder: Path, packing: str) -> list[Shard]:
    shards: list[Shard] = []
    parts = [part for result in results for part in result.shards]
    kept = [part for part in parts if part[1]] or parts[:1]
    for name, records, sha256 in kept:
        shard = shard_name(len(shards), packing)
        if (folder / PARTS / name).exists():
            (folder / PARTS / name).rename(folder / shard)
        shards.append(Shard(shard, records, sha256))
    return shards


def _append(part: Path, to: IO[bytes]) -> None:
    with part.open("rb") as stream:
        shutil.copyfileobj(stream, to, 1 << 20)


def _too_many(report: ConversionReport, results: Sequence[SplitResult], output: Path, allowed: int) -> TooManyRejects:
    first: list[Reject] = [reject for result in results for reject in result.first_rejects][:SHOWN_REJECTS]
    shown = "".join(f"\n  {reject.describe()}" for reject in first)
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(report.reasons.items()))
    return TooManyRejects(
        f"{report.rejected} of {report.read} conversations were rejected, {allowed} allowed ({counts}){shown}",
        where=str(output),
        fix=f"all of them are in {output / REJECTS}; mend the source, or allow more with --max-rejects "
        f"{report.rejected}, and convert again",
    )


def _manifest(report: ConversionReport, shards: list[Shard], plan: ConversionPlan, folder: Path) -> dict[str, Any]:
    files = [path for path in (folder / MEDIA_FOLDER).rglob("*") if path.is_file()]
    sources = [file.source.path for file in plan.files]
    companions = sorted(
        {path for file in plan.files for _, path in file.companions}
        | {file.dataset_info for file in plan.files if file.dataset_info is not None}
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "converter_version": __version__,
        "format": plan.format,
        "counts": {
            "source_records": report.source_records,
            "read": report.read,
            "written": report.written,
            "rejected": report.rejected,
            "media_files": len(files),
            "media_bytes": sum(path.stat().st_size for path in files),
        },
        "shards": [asdict(shard) for shard in shards],
        "options": plan.options.to_dict(),
        "sources": [_fingerprint(path) for path in [*sources, *companions]],
    }


def _fingerprint(path: Path) -> dict[str, Any]:
    if path.is_dir():
        names = sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*"))
        return {"file": path.name, "bytes": 0, "sha256": fingerprint_objects(names)}
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(redact_values(value), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
