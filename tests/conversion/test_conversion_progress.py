"""What a person sees of a conversion under way."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from conversion_sources import text_record, write_source
from rich.console import Console

from aria_finetune import conversion_progress
from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.conversion.engines import LocalEngine
from aria_finetune.conversion.plan import SPLIT_BYTES
from aria_finetune.conversion.work import SplitResult, Work
from aria_finetune.conversion_progress import ConversionProgress, describe
from aria_finetune.data_formats.reading.extents import Extent, Tally
from aria_finetune.data_formats.reading.sources import SourceFile


@pytest.mark.parametrize(
    ("records", "rejects", "total", "seconds", "line"),
    [
        (0, 0, None, 0.0, "0 records  0 records/s  0 rejected"),
        (0, 0, 5000, 3.0, "0/5,000 records  0 records/s  0 rejected"),
        (1000, 2, None, 0.5, "1,000 records  2,000 records/s  2 rejected"),
        (1000, 1234, 10_000, 2.0, "1,000/10,000 records  500 records/s  1,234 rejected  0:00:18 left"),
        (1, 0, 36_001, 1.0, "1/36,001 records  1 records/s  0 rejected  10:00:00 left"),
        (12, 0, 10, 1.0, "12/10 records  12 records/s  0 rejected  0:00:00 left"),
    ],
)
def test_a_line(records: int, rejects: int, total: int | None, seconds: float, line: str) -> None:
    assert describe(records, rejects, total, seconds) == line


class StandIn:
    """An engine that has done 300 records."""

    def count(self, extents: Sequence[tuple[SourceFile, Extent]]) -> Iterable[Tally]:
        raise NotImplementedError

    def convert(self, works: Sequence[Work]) -> Iterator[SplitResult]:
        raise NotImplementedError

    def progress(self) -> tuple[int, int]:
        return 300, 7


def test_without_a_terminal_a_line_is_printed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_progress, "LINE_SECONDS", 0.05)
    output = io.StringIO()
    with ConversionProgress(Console(file=output, width=200))(StandIn(), 1000):
        time.sleep(0.3)
    told = output.getvalue().splitlines()
    assert 2 <= len(told) <= 7
    assert all(re.fullmatch(r"300/1,000 records  [\d,]+ records/s  7 rejected  0:00:0\d left", line) for line in told)


def test_a_short_conversion_prints_nothing() -> None:
    output = io.StringIO()
    with ConversionProgress(Console(file=output))(StandIn(), 1000):
        pass
    assert output.getvalue() == ""


def test_on_a_terminal_a_line_is_kept_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_progress, "_REFRESH_SECONDS", 0.05)
    output = io.StringIO()
    with ConversionProgress(Console(file=output, force_terminal=True, width=200))(StandIn(), None):
        time.sleep(0.3)
    assert "300 records" in output.getvalue()
    assert "\x1b[2K" in output.getvalue(), "the line is not taken away at the end"


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_engine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setitem(SPLIT_BYTES, "header", 100_000)
    records = [{} if number % 10 == 0 else text_record(number) for number in range(1, 5001)]
    source = write_source(tmp_path / "data.jsonl", records)
    seen: list[tuple[LocalEngine, int | None]] = []

    class Watch:
        def __init__(self, engine: LocalEngine, total: int | None) -> None:
            seen.append((engine, total))

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            seen.append((seen[0][0], None))

    engine = LocalEngine(workers)
    options = ConversionOptions(format="llava", max_rejects=500)
    for output in ("one", "two"):
        seen.clear()
        convert(source, tmp_path / output, options, engine, Watch)  # type: ignore[arg-type]
        assert seen == [(engine, 5000), (engine, None)]
        assert engine.progress() == (5000, 500), "each conversion is counted from 0"
    engine.close()
