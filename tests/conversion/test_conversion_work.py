"""One split: its files, its result, and what a worker keeps from one to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversion_sources import lines, llava, mixed_records, names, sha256, text_record, write_source

from aria_finetune.conversion import ConversionOptions, Reject, work
from aria_finetune.conversion.engine import FileConverter
from aria_finetune.conversion.engines import LocalEngine
from aria_finetune.conversion.options import ConversionReport
from aria_finetune.conversion.plan import SPLIT_BYTES, ConversionPlan, cut_work, find_files
from aria_finetune.conversion.work import SplitResult, Work, Worker, read_result, rejects_path, result_path

OPTIONS = ConversionOptions(format="llava")


def planned(source: Path, options: ConversionOptions = OPTIONS) -> ConversionPlan:
    form, files = find_files(source, options)
    return cut_work(form, files, options, LocalEngine(1).count)


def works(source: Path, folder: Path, options: ConversionOptions = OPTIONS) -> list[Work]:
    (folder / "parts").mkdir(parents=True)
    made = planned(source, options)
    return [Work(made.format, made.files[split.file], split, options, folder) for split in made.splits]


def silent(_records: int, _rejects: int) -> None:
    pass


class TestASplit:
    def test_its_files_and_its_result(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 12))
        (only,) = works(source, tmp_path / "out")
        assert read_result(tmp_path / "out", only.split) is None
        result = Worker().run(only, silent)
        parts = tmp_path / "out" / "parts"
        assert names(parts) == {"00000.json", "00000.rejects.jsonl", "00000-000.jsonl"}
        assert len(lines(parts / "00000-000.jsonl")) == 8
        assert [line["ordinal"] for line in lines(rejects_path(tmp_path / "out", only.split))] == [3, 5, 7, 11]
        assert result.shards == [("00000-000.jsonl", 8, sha256(parts / "00000-000.jsonl"))]
        assert (result.report.source_records, result.report.written, result.report.rejected) == (12, 8, 4)
        assert result.report.formats == {"llava": 12}
        assert [reject.ordinal for reject in result.first_rejects] == [3, 5, 7, 11]
        assert read_result(tmp_path / "out", only.split) == result

    def test_the_result_comes_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write_source(tmp_path / "data.jsonl", [text_record(number) for number in range(5)])
        (only,) = works(source, tmp_path / "out")
        seen: list[set[str]] = []
        replace_text = work.replace_text

        def watched(path: Path, text: str) -> None:
            seen.append(names(path.parent))
            assert path == result_path(tmp_path / "out", only.split)
            assert len(lines(path.with_name("00000-000.jsonl"))) == 5
            replace_text(path, text)

        monkeypatch.setattr(work, "replace_text", watched)
        Worker().run(only, silent)
        assert seen == [{"00000.rejects.jsonl", "00000-000.jsonl"}]

    def test_done_again_it_is_the_same(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 12))
        (only,) = works(source, tmp_path / "out")
        first = Worker().run(only, silent)
        (tmp_path / "out" / "parts" / "00000-000.jsonl").write_text("half of what")
        assert Worker().run(only, silent) == first
        assert sha256(tmp_path / "out" / "parts" / "00000-000.jsonl") == first.shards[0][2]

    def test_the_first_rejects_are_told_and_all_of_them_written(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [{} for _ in range(9)])
        (only,) = works(source, tmp_path / "out")
        result = Worker().run(only, silent)
        assert [reject.ordinal for reject in result.first_rejects] == list(range(5))
        assert len(lines(rejects_path(tmp_path / "out", only.split))) == 9
        assert result.shards[0][1] == 0, "a data file without a record"

    def test_secrets_and_broken_text_in_rejects(self, tmp_path: Path) -> None:
        turns = [{"from": "\ud800", "value": "x"}]
        records = [{"conversations": turns}, llava("https://user:secret@host/a.png")]
        (only,) = works(write_source(tmp_path / "data.jsonl", records), tmp_path / "out")
        Worker().run(only, silent)
        text = rejects_path(tmp_path / "out", only.split).read_text(encoding="utf-8")
        assert "\\ud800" in text
        assert "secret" not in text
        assert [json.loads(line)["reason"] for line in text.splitlines()] == ["bad_roles", "media_remote"]

    def test_progress_is_told_now_and_then_and_at_the_end(self, tmp_path: Path) -> None:
        records = [{} if number % 100 == 0 else text_record(number) for number in range(2500)]
        (only,) = works(write_source(tmp_path / "data.jsonl", records), tmp_path / "out")
        told: list[tuple[int, int]] = []
        Worker().run(only, lambda records, rejects: told.append((records, rejects)))
        assert told == [(1000, 10), (1000, 10), (500, 5)]


class TestAWorker:
    @pytest.fixture
    def converters(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What converters are made and ended."""
        seen: list[str] = []
        make, end = FileConverter.__init__, FileConverter.__exit__

        def made(self: FileConverter, *arguments: object) -> None:
            seen.append("made")
            make(self, *arguments)  # type: ignore[arg-type]

        def ended(self: FileConverter, *arguments: object) -> None:
            seen.append("ended")
            end(self, *arguments)

        monkeypatch.setattr(FileConverter, "__init__", made)
        monkeypatch.setattr(FileConverter, "__exit__", ended)
        return seen

    def test_splits_of_one_file_share_its_tables(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converters: list[str]
    ) -> None:
        monkeypatch.setitem(SPLIT_BYTES, "header", 2000)
        for part in range(2):
            write_source(tmp_path / "in" / f"part-{part}.jsonl", [text_record(number) for number in range(100)])
        todo = works(tmp_path / "in", tmp_path / "out")
        assert len(todo) > 6
        worker = Worker()
        for each in todo:
            worker.run(each, silent)
        assert converters == ["made", "ended", "made"]
        worker.close()
        worker.close()
        assert converters == ["made", "ended", "made", "ended"]

    def test_another_conversion_gets_its_own(self, tmp_path: Path, converters: list[str]) -> None:
        write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 8))
        worker = Worker()
        for name, options in (("one", OPTIONS), ("two", OPTIONS), ("three", ConversionOptions(verify="stat"))):
            (only,) = works(tmp_path / "in" / "data.jsonl", tmp_path / name, options)
            worker.run(only, silent)
            assert (tmp_path / name / "media").is_dir()
            record = lines(tmp_path / name / "parts" / "00000-000.jsonl")[1]
            assert record["media"][0]["width"] == (0 if name == "three" else 40)
        assert converters.count("made") == 3


def test_a_result_as_json() -> None:
    reject = Reject("a.jsonl", 3, None, "llava:a.jsonl:3", "bad_json", "line 4: \ud800")
    result = SplitResult(ConversionReport(4, 3, 1), [("00000-000.jsonl", 3, "ab")], [reject])
    assert SplitResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
