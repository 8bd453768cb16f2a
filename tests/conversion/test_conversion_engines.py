"""The same bytes however many processes there are, and no process that goes on when it should not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conversion_sources import mixed_records, names, steady, text_record, write_list, write_source, written
from rich.console import Console

from aria_finetune.conversion import ConversionOptions, convert, engines, writing
from aria_finetune.conversion.engines import LocalEngine, default_workers
from aria_finetune.conversion.engines import engine as open_engine
from aria_finetune.conversion.plan import SPLIT_BYTES, ConversionPlan
from aria_finetune.conversion.work import SplitResult, Work
from aria_finetune.conversion_progress import ConversionProgress
from aria_finetune.data_formats.reading import json_array, sources
from aria_finetune.data_formats.reading.contents import Contents
from aria_finetune.data_formats.reading.extents import Extent, Tally
from aria_finetune.errors import UserError

ANY_REJECTS = ConversionOptions(max_rejects=10_000)


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    for verify in SPLIT_BYTES:
        monkeypatch.setitem(SPLIT_BYTES, verify, 4000)


def convert_with(
    workers: int, source: Path, output: Path, options: ConversionOptions = ANY_REJECTS
) -> dict[str, object]:
    with open_engine("local", workers) as engine:
        convert(source, output, options, engine)
    return dict(steady(output))


def data_files(files: dict[str, object]) -> int:
    return sum(name.startswith("data-") for name in files)


class TestTheSameBytes:
    @pytest.mark.parametrize(
        "kind", ["lines", "list", "indented list", "folder of lines", "packed", "left in place", "linked"]
    )
    def test_with_any_number_of_processes(self, tmp_path: Path, kind: str) -> None:
        folder = tmp_path / "in"
        records, source, options = mixed_records(folder, 300), folder / "data.json", ANY_REJECTS
        if "list" in kind:
            write_list(source, records, indent=2 if kind.startswith("indented") else None)
        elif kind == "folder of lines":
            source = folder
            for number in range(3):
                write_source(folder / f"part-{number}.jsonl", records[number * 100 :][:100])
        else:
            write_source(source, records)
        if kind == "packed":
            options = ConversionOptions(max_rejects=999, pack="parquet")
        if kind in {"left in place", "linked"}:
            media = "reference" if kind == "left in place" else "hardlink"
            options = ConversionOptions(max_rejects=999, media=media, verify="decode")
        wanted = convert_with(1, source, tmp_path / "1", options)
        assert data_files(wanted) > 3
        assert convert_with(2, source, tmp_path / "2", options) == wanted
        assert convert_with(4, source, tmp_path / "4", options) == wanted

    def test_splits_change_nothing_but_the_data_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 300))
        cut = convert_with(2, source, tmp_path / "cut")
        monkeypatch.setitem(SPLIT_BYTES, "header", 10**9)
        whole = convert_with(2, source, tmp_path / "whole")
        assert (data_files(cut) > 3, data_files(whole)) == (True, 1)
        assert written(tmp_path / "cut") == written(tmp_path / "whole")
        for files in (cut, whole):
            for name in [name for name in files if name.startswith(("data-", "manifest"))]:
                del files[name]
        assert cut == whole

    def test_one_engine_for_several_conversions(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 100))
        wanted = convert_with(1, source, tmp_path / "wanted")
        with open_engine("local", 2) as engine:
            for output in ("one", "two"):
                convert(source, tmp_path / output, ANY_REJECTS, engine)
                assert steady(tmp_path / output) == wanted
            with pytest.raises(UserError, match="no such file"):
                convert(tmp_path / "nowhere", tmp_path / "three", ANY_REJECTS, engine)
            convert(source, tmp_path / "three", ConversionOptions(max_rejects=999, pack="parquet"), engine)
        assert (tmp_path / "three" / "data-00000.parquet").exists()


NESTED = [{"conversations": 1}, {"conversations": 2}]
# The first two records of a list give away how a record ends, `}`, and with which key the next begins.
SECOND_TAIL = [dict(text_record(number), id=f"{number}") for number in range(300)]
SECOND_TAIL[150:160] = [dict(text_record(number), other=NESTED, id=f"{number}") for number in range(150, 160)]
NO_TAIL = [text_record(number) for number in range(300)]
NO_TAIL[150:160] = [dict(text_record(number), other=[text_record(1), text_record(2)]) for number in range(150, 160)]


class TestListsCutWrongly:
    @pytest.fixture
    def tails(self, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
        """By how much of a record's end the list was cut, one try after the other."""
        tried: list[int | None] = []
        cut_work = writing.cut_work

        def watched(*arguments: object) -> ConversionPlan:
            tried.append(arguments[-1])  # type: ignore[arg-type]
            return cut_work(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(writing, "cut_work", watched)
        return tried

    @pytest.mark.parametrize("workers", [1, 2, 4])
    @pytest.mark.parametrize(("records", "tries"), [(SECOND_TAIL, [1, 2]), (NO_TAIL, [1, 2, None])])
    def test_they_are_read_again(
        self, tmp_path: Path, tails: list[int | None], workers: int, records: list[object], tries: list[int | None]
    ) -> None:
        source = write_list(tmp_path / "data.json", records)
        found = convert_with(workers, source, tmp_path / "out")
        assert tails == tries
        assert [record["source"]["ordinal"] for record in written(tmp_path / "out")] == list(range(300))
        assert (data_files(found) == 1) == (tries[-1] is None)

    def test_what_is_still_at_work_when_it_is_found_out_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tails: list[int | None]
    ) -> None:
        """The first split comes to its end long after the guess was refuted by another."""
        read = json_array.read

        def slow(file: Path, contents: Contents, extent: Extent, before: Tally) -> Iterator[object]:
            if extent.mark and before.records == 0 and len(extent.mark) == len('}, {"conversations":'):
                time.sleep(1)
            return read(file, contents, extent, before)

        monkeypatch.setattr(json_array, "read", slow)
        source = write_list(tmp_path / "data.json", SECOND_TAIL)
        found = convert_with(2, source, tmp_path / "out")
        assert tails == [1, 2]
        monkeypatch.undo()
        for verify in SPLIT_BYTES:
            monkeypatch.setitem(SPLIT_BYTES, verify, 4000)
        assert found == convert_with(1, source, tmp_path / "wanted")

    def test_a_start_after_a_kill_does_not_guess_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tails: list[int | None]
    ) -> None:
        source = write_list(tmp_path / "data.json", SECOND_TAIL)
        wanted = convert_with(1, source, tmp_path / "wanted")
        put_together = writing._put_together
        monkeypatch.setattr(writing, "_put_together", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", ANY_REJECTS)
        monkeypatch.setattr(writing, "_put_together", put_together)
        monkeypatch.setattr(engines.Worker, "run", _interrupted)  # all splits are done
        tails.clear()
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert tails == [2]
        assert steady(tmp_path / "out") == wanted

    def test_another_source_is_guessed_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tails: list[int | None]
    ) -> None:
        source = write_list(tmp_path / "data.json", SECOND_TAIL)
        put_together = writing._put_together
        monkeypatch.setattr(writing, "_put_together", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", ANY_REJECTS)
        monkeypatch.setattr(writing, "_put_together", put_together)
        write_list(source, SECOND_TAIL[:150])
        tails.clear()
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert tails == [1]
        assert len(written(tmp_path / "out")) == 150


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_broken_file_ends_all_processes_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data.jsonl", [text_record(number) for number in range(500)])
    with source.open("ab") as stream:
        stream.write(b'{"conversations": "\xff"}\n')
    with open_engine("local", 4) as engine, pytest.raises(UserError, match="is not UTF-8") as caught:
        convert(source, tmp_path / "out", ANY_REJECTS, engine)
    assert caught.value.where == str(source)
    assert names(tmp_path) == {"data.jsonl"}


class TestEndedFromOutside:
    """Four splits are done, and two processes are at work for a minute when something happens."""

    @pytest.fixture
    def source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        convert_split = engines._convert

        def slow(work: Work) -> SplitResult:
            time.sleep(0 if work.split.number < 4 else 60)
            return convert_split(work)

        slow.__module__, slow.__qualname__ = engines.__name__, "_convert"  # for its way to the processes
        monkeypatch.setattr(engines, "_convert", slow)
        return write_source(tmp_path / "data.jsonl", [text_record(number) for number in range(300)])

    @pytest.fixture
    def interruptible(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def finished(self, folder: Path) -> int:
        return len(list((folder / ".out.converting" / "parts").glob("?????.json")))

    def strike(self, folder: Path, engine: LocalEngine, number: int, *, ourselves: bool) -> threading.Thread:
        def wait_and_send() -> None:
            while self.finished(folder) < 4:
                time.sleep(0.01)
            assert engine._pool
            os.kill(os.getpid() if ourselves else list(engine._pool._processes)[-1], number)

        thread = threading.Thread(target=wait_and_send)
        thread.start()
        return thread

    def test_a_process_that_is_killed_is_told(self, tmp_path: Path, source: Path) -> None:
        began = time.monotonic()
        with closing(LocalEngine(2)) as engine:
            thread = self.strike(tmp_path, engine, signal.SIGKILL, ourselves=False)
            with pytest.raises(UserError, match="ended from outside") as caught:
                convert(source, tmp_path / "out", ANY_REJECTS, engine)
        thread.join()
        assert time.monotonic() - began < 20, "it waited for the other process"
        assert "goes on with what is not done yet" in (caught.value.fix or "")
        assert self.finished(tmp_path) == 4

    @pytest.mark.usefixtures("interruptible")
    def test_an_interruption_does_not_wait_for_a_split(self, tmp_path: Path, source: Path) -> None:
        began = time.monotonic()
        with closing(LocalEngine(2)) as engine:
            thread = self.strike(tmp_path, engine, signal.SIGINT, ourselves=True)
            with pytest.raises(KeyboardInterrupt):
                convert(source, tmp_path / "out", ANY_REJECTS, engine)
        thread.join()
        assert time.monotonic() - began < 20
        assert self.finished(tmp_path) == 4


def test_counting_in_several_processes(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data.jsonl", [text_record(number) for number in range(300)])
    (file,) = sources.locate(source)
    extents = [(file, extent) for extent in sources.cut(file, 4000)]
    with closing(LocalEngine(2)) as engine:
        counted = list(engine.count(extents))
    assert counted == list(LocalEngine(1).count(extents))
    assert sum(tally.records for tally in counted) == 300


def test_processes_start_before_the_thread_that_shows_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork keeps the locks that other threads hold, and lets none of them go."""
    threads: list[int] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: threads.append(threading.active_count()) or fork())
    for part in range(3):  # each in one piece, so that nothing is counted before
        write_source(tmp_path / "in" / f"part-{part}.jsonl", [text_record(part)])
    before = threading.active_count()
    with open_engine("local", 2) as engine:
        convert(tmp_path / "in", tmp_path / "out", ANY_REJECTS, engine, ConversionProgress(Console(quiet=True)))
    assert threads == [before, before]


def test_a_small_source_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ProcessPoolExecutor", _interrupted)
    assert convert_with(8, write_source(tmp_path / "data.jsonl", [text_record(1)]), tmp_path / "out")


def test_as_many_processes_as_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert default_workers() == 3
