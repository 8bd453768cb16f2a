"""What is decided before the first record: files, format, companions, and how the work is cut."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 (what a conversion does to send work to its processes)
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conversion_sources import lines, llava, mixed_records, text_record, write_image, write_list, write_source, written
from pyarrow import parquet

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.conversion.engines import LocalEngine
from aria_finetune.conversion.plan import SPLIT_BYTES, ConversionPlan, PlannedFile, cut_work, find_files
from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.format import Format
from aria_finetune.errors import UserError

OPTIONS = ConversionOptions()
ANY_REJECTS = ConversionOptions(max_rejects=10_000)


def plan(source: Path, options: ConversionOptions = OPTIONS, workers: int = 1, tail: int | None = 1) -> ConversionPlan:
    form, files = find_files(source, options)
    engine = LocalEngine(workers)
    made = cut_work(form, files, options, engine.count, tail)
    engine.close()
    return made


def found(source: Path, **options: Any) -> tuple[Format, list[PlannedFile]]:
    return find_files(source, ConversionOptions(**options))


def texts(folder: Path) -> list[str]:
    """What the user says in each record of a data set."""
    return [record["messages"][0]["content"][-1]["text"] for record in written(folder)]


@pytest.fixture
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    for verify in SPLIT_BYTES:
        monkeypatch.setitem(SPLIT_BYTES, verify, 3000)


def test_the_further_media_are_looked_into_the_smaller_are_the_splits() -> None:
    assert SPLIT_BYTES["none"] == SPLIT_BYTES["stat"] > SPLIT_BYTES["header"] > SPLIT_BYTES["decode"] > 0


@pytest.mark.usefixtures("small_splits")
class TestSplits:
    def test_they_depend_on_source_and_options_alone(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", mixed_records(tmp_path, 200))
        first = plan(source)
        assert len(first.splits) > 5
        assert plan(source, workers=2) == plan(source, workers=4) == first
        assert plan(source, ConversionOptions(max_rejects=7)).splits == first.splits
        assert plan(source, ConversionOptions(max_rejects=7)).describe() == first.describe()
        assert json.loads(json.dumps(first.describe())) == first.describe()

    @pytest.mark.parametrize("change", ["content", "time", "place", "options", "companion", "converter"])
    def test_what_changes_what_comes_out_changes_the_description(self, tmp_path: Path, change: str) -> None:
        source = write_source(tmp_path / "one" / "val_questions.jsonl", [QUESTION])
        answers = write_source(tmp_path / "one" / "val_answers.jsonl", [ANSWER])
        converter = tmp_path / "mine.py"
        converter.write_text("FORMATS = ()")
        options = ConversionOptions(converter=converter)
        before = plan(source, options).describe()
        assert plan(source, options).describe() == before
        match change:
            case "content":
                write_source(source, [QUESTION, QUESTION])
            case "time":
                source.touch()
            case "place":
                source = source.parent.rename(tmp_path / "two") / source.name
            case "options":
                options = replace(options, evaluation=True)
            case "companion":
                write_source(answers, [ANSWER, ANSWER])
            case "converter":
                converter.write_text("FORMATS = () # x")
        assert plan(source, options).describe() != before

    @pytest.mark.parametrize("kind", ["lines", "list", "parquet"])
    def test_ordinals_go_on_over_splits_and_begin_anew_in_each_file(self, tmp_path: Path, kind: str) -> None:
        folder, expected = tmp_path / "in", []
        for part, count in enumerate((150, 1, 120)):
            records = [text_record(f"{part} {number}") for number in range(count)]
            name = f"part-{part}.{'parquet' if kind == 'parquet' else 'json'}"
            expected += [(name, number) for number in range(count)]
            folder.mkdir(exist_ok=True)
            if kind == "lines":
                write_source(folder / name, records)
            elif kind == "list":
                write_list(folder / name, records)
            else:
                parquet.write_table(pa.Table.from_pylist(records), folder / name, row_group_size=20)
        made = plan(folder)
        assert [split.file for split in made.splits].count(0) > 1
        assert [split.file for split in made.splits].count(1) == 1
        assert [split.number for split in made.splits] == list(range(len(made.splits)))
        assert made.records is None, "a file in one piece is not counted"
        convert(folder, tmp_path / "out", OPTIONS)
        records = written(tmp_path / "out")
        assert [(record["source"]["file"], record["source"]["ordinal"]) for record in records] == expected
        assert [record["id"] for record in records] == [f"llava:{name}:{number}" for name, number in expected]
        assert texts(tmp_path / "out") == [f"{name[5]} {number}?" for name, number in expected]

    def test_lines_of_errors_go_on_over_splits(self, tmp_path: Path) -> None:
        source = tmp_path / "data.jsonl"
        rows = [json.dumps(text_record(number)) for number in range(200)]
        rows[170] = "\n\n" + '{"conversations": [}'  # two blank lines, which are no records
        source.write_text("\n".join(rows))
        made = plan(source)
        assert len(made.splits) > 5
        assert made.records == 200
        convert(source, tmp_path / "out", ANY_REJECTS)
        (reject,) = lines(tmp_path / "out" / "rejects.jsonl")
        assert (reject["ordinal"], reject["reason"]) == (170, "bad_json")
        assert reject["detail"].startswith("line 173, column 20")

    def test_what_is_not_cut(self, tmp_path: Path) -> None:
        records = [text_record(number) for number in range(200)]
        source = write_list(tmp_path / "data.json", records)
        assert len(plan(source).splits) > 5
        assert len(plan(source, tail=None).splits) == 1
        (tmp_path / "whole.json").write_text(json.dumps({"data": records}))
        assert len(plan(tmp_path / "whole.json").splits) == 1
        utf_16 = tmp_path / "utf-16.jsonl"
        utf_16.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-16")
        assert len(plan(utf_16).splits) == 1

    def test_pieces_of_work_can_be_sent_to_processes(self, tmp_path: Path) -> None:
        made = plan(write_source(tmp_path / "data.jsonl", [text_record(number) for number in range(200)]))
        assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301 (our own)


QUESTION = {"question_id": 1, "image": "a.png", "text": "Which?"}
ANSWER = {"question_id": 1, "text": "This."}


class TestCompanions:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        write_image(tmp_path / "in" / "a.png")
        return write_source(tmp_path / "in" / "val_questions.jsonl", [QUESTION])

    def answer(self, folder: Path) -> str:
        (record,) = written(folder)
        return str(record["messages"][1]["content"][0]["text"])

    def test_beside_the_source(self, source: Path, tmp_path: Path) -> None:
        write_source(source.with_name("val_answers.jsonl"), [ANSWER])
        assert found(source)[1][0].companions == (("answers", source.with_name("val_answers.jsonl")),)
        convert(source, tmp_path / "out", OPTIONS)
        assert self.answer(tmp_path / "out") == "This."
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert [file["file"] for file in manifest["sources"]] == ["val_questions.jsonl", "val_answers.jsonl"]

    @pytest.mark.parametrize("write", [write_source, write_list])
    def test_named_by_the_user(self, source: Path, tmp_path: Path, write: Any) -> None:
        write_source(source.with_name("val_answers.jsonl"), [ANSWER])
        named = write(tmp_path / "elsewhere.json", [ANSWER | {"text": "That."}])
        other = write(tmp_path / "other.json", [{"nothing": "of it"}])
        options = ConversionOptions(companions=(other, named))
        assert found(source, companions=(other, named))[1][0].companions == (("answers", named),)
        convert(source, tmp_path / "out", options)
        assert self.answer(tmp_path / "out") == "That."

    def test_one_that_is_not_needed_may_be_missing(self, source: Path, tmp_path: Path) -> None:
        assert found(source)[1][0].companions == ()
        assert convert(source, tmp_path / "out", ConversionOptions(evaluation=True)).written == 1

    def test_one_that_can_not_be_read(self, source: Path, tmp_path: Path) -> None:
        path = source.with_name("val_answers.jsonl")
        path.write_text(json.dumps(ANSWER) + "\n{broken\n")
        with pytest.raises(UserError, match=r"a record of it can't be read: .*line 2") as caught:
            convert(source, tmp_path / "out", OPTIONS)
        assert caught.value.where == str(path)
        assert {entry.name for entry in tmp_path.iterdir()} == {"in"}

    @pytest.fixture
    def needing(self, tmp_path: Path) -> Path:
        """A converter of the user's own with a companion that it needs."""
        converter = tmp_path / "needing.py"
        converter.write_text(
            "from aria_finetune.data_formats.building.questions import asked\n"
            "from aria_finetune.data_formats.format import Companion, Format\n"
            "def convert(record, context):\n"
            "    yield asked([], record['q'], context.tables['names'][record['a']])\n"
            "FORMAT = Format('needing', '', '', {}, (), frozenset(), lambda r: 'q' in r, convert, companions=(Companion(\n"
            "    'names', 'names.txt', lambda names, source: 'names.txt' if 'names.txt' in names else None,\n"
            "    lambda record: isinstance(record, dict) and 'name' in record,\n"
            "    lambda records: [r['name'] for r in records], required=True),))\n"
        )
        return converter

    def test_one_that_is_needed(self, tmp_path: Path, needing: Path) -> None:
        source = write_source(tmp_path / "in" / "data.jsonl", [{"q": "Who?", "a": 1}])
        options = ConversionOptions(format="needing", converter=needing)
        with pytest.raises(UserError, match=r"needing needs its names, and it is not there \(names.txt\)") as caught:
            convert(source, tmp_path / "out", options)
        assert caught.value.where == str(source)
        assert caught.value.fix == "put it beside the source, or name it with --with"
        named = write_source(tmp_path / "people.jsonl", [{"name": "Ann"}, {"name": "Bo"}])
        convert(source, tmp_path / "out", replace(options, companions=(named,)))
        assert self.answer(tmp_path / "out") == "Bo"
        (source.parent / "names.txt").write_text("name,age\nCid,3\nDee,4\n")
        convert(source, tmp_path / "table", options)
        assert self.answer(tmp_path / "table") == "Dee"


class TestMetaFiles:
    """InternVL's list of sets, each with its own root."""

    @pytest.fixture
    def meta(self, tmp_path: Path) -> Path:
        write_image(tmp_path / "in" / "cats" / "a.png")
        write_image(tmp_path / "in" / "dogs" / "a.png", color="blue")
        write_image(tmp_path / "in" / "b.png", color="green")
        write_source(tmp_path / "in" / "lists" / "cats.jsonl", [llava("a.png"), llava("b.png")])
        write_source(tmp_path / "in" / "lists" / "dogs.jsonl", [llava("a.png")])
        sets = {
            "cats": {"root": "cats", "annotation": "lists/cats.jsonl", "repeat_time": 1},
            "dogs": {"root": "dogs/", "annotation": "lists/dogs.jsonl", "repeat_time": 3, "length": 1},
        }
        (tmp_path / "in" / "meta.json").write_text(json.dumps(sets))
        return tmp_path / "in" / "meta.json"

    def test_sets_with_their_roots(self, meta: Path, tmp_path: Path) -> None:
        form, files = found(meta)
        folder = meta.parent
        assert form.name == "llava"
        assert [(file.source.name, file.roots, file.notices) for file in files] == [
            ("cats/cats.jsonl", (folder / "cats", folder), ()),
            ("dogs/dogs.jsonl", (folder / "dogs", folder), ("repeat_time_not_applied",)),
        ]
        report = convert(meta, tmp_path / "out", OPTIONS)
        assert report.repairs == {"repeat_time_not_applied": 1}
        records = written(tmp_path / "out")
        assert [record["id"] for record in records] == [
            "llava:cats/cats.jsonl:0",
            "llava:cats/cats.jsonl:1",
            "llava:dogs/dogs.jsonl:0",
        ]
        assert len({record["media"][0]["sha256"] for record in records}) == 3

    def test_media_roots_take_the_place_of_its_folder(self, meta: Path, tmp_path: Path) -> None:
        moved = tmp_path / "moved"
        meta.parent.rename(moved)
        alone = tmp_path / "alone" / "meta.json"
        alone.parent.mkdir()
        (moved / "meta.json").rename(alone)
        with pytest.raises(FormatError, match=r"the annotation file 'lists/cats.jsonl' is not there") as caught:
            found(alone)
        assert caught.value.where == str(alone.parent)
        assert convert(alone, tmp_path / "out", ConversionOptions(media_roots=(moved,))).written == 3


TABLE = {"mine": {"file_name": "mine.jsonl", "columns": {"prompt": "ask", "response": "say"}}}


class TestDatasetInfo:
    """LLaMA-Factory's table of what columns hold."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return write_source(tmp_path / "in" / "mine.jsonl", [{"ask": "Who?", "say": "Ann.", "nr": 7}])

    @pytest.mark.parametrize("place", ["beside", "named"])
    def test_columns_are_renamed(self, source: Path, tmp_path: Path, place: str) -> None:
        folder = source.parent if place == "beside" else tmp_path / "other"
        folder.mkdir(exist_ok=True)
        table = folder / "dataset_info.json"
        table.write_text(json.dumps(TABLE))
        options = ConversionOptions(companions=(table,) if place == "named" else ())
        form, (file,) = find_files(source, options)
        assert (form.name, file.dataset_info) == ("alpaca", table)
        convert(source, tmp_path / "out", options)
        (record,) = written(tmp_path / "out")
        assert [part["text"] for message in record["messages"] for part in message["content"]] == ["Who?", "Ann."]
        assert json.loads(record["meta"]) == {"meta": {"nr": 7}}
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert [file["file"] for file in manifest["sources"]] == ["mine.jsonl", "dataset_info.json"]

    def test_a_table_of_other_files_says_nothing(self, source: Path) -> None:
        table = {"other": {**TABLE["mine"], "file_name": "other.jsonl"}}
        (source.parent / "dataset_info.json").write_text(json.dumps(table))
        with pytest.raises(FormatError, match="no known format"):
            found(source)

    def test_a_record_that_can_not_be_parsed_is_passed_on(self, source: Path, tmp_path: Path) -> None:
        (source.parent / "dataset_info.json").write_text(json.dumps(TABLE))
        with source.open("a") as stream:
            stream.write("{broken\n")
        report = convert(source, tmp_path / "out", ANY_REJECTS)
        assert (report.written, report.reasons) == (1, {"bad_json": 1})


class TestText:
    LINES = "a.jpg#0\tA dog runs.\na.jpg#1\tA dog, running.\n"
    ROWS = "question\tanswer\nWho?\tAnn.\nWhen?\tNow, 5.\n"

    def test_lines(self, tmp_path: Path) -> None:
        (tmp_path / "captions.txt").write_text(self.LINES)
        form, (file,) = found(tmp_path / "captions.txt")
        assert (form.name, file.source.contents.kind) == ("flickr-lines", "text_lines")

    def test_a_table(self, tmp_path: Path) -> None:
        (tmp_path / "pairs.tsv").write_text(self.ROWS)
        form, (file,) = found(tmp_path / "pairs.tsv")
        assert (form.name, file.source.contents.kind) == ("columns", "table")
        convert(tmp_path / "pairs.tsv", tmp_path / "out", OPTIONS)
        assert texts(tmp_path / "out") == ["Who?", "When?"]

    def test_a_format_that_is_named_decides(self, tmp_path: Path) -> None:
        (tmp_path / "captions.txt").write_text(self.LINES)
        assert found(tmp_path / "captions.txt", format="flickr-lines")[1][0].source.contents.kind == "text_lines"
        (tmp_path / "pairs.tsv").write_text(self.ROWS)
        assert found(tmp_path / "pairs.tsv", format="image-qa")[1][0].source.contents.kind == "table"

    def test_neither(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("Some words.\nAnd some more.\n")
        with pytest.raises(FormatError, match="neither JSON nor a table"):
            found(tmp_path / "notes.txt")


class TestFormats:
    def test_columns_that_are_named(self, tmp_path: Path) -> None:
        write_image(tmp_path / "in" / "a.png")
        source = tmp_path / "in" / "table.csv"
        source.write_text("file,prompt,reply,id\na.png,What?,A cat.,0007\n")
        with pytest.raises(FormatError, match="no known format"):
            found(source)
        options = ConversionOptions(columns={"image": "file", "question": "prompt", "answer": "reply"})
        assert find_files(source, options)[0].name == "columns"
        convert(source, tmp_path / "out", options)
        (record,) = written(tmp_path / "out")
        assert record["media"][0]["origin"] == "a.png"
        assert [part["text"] for message in record["messages"] for part in message["content"]] == [
            None,
            "What?",
            "A cat.",
        ]
        assert json.loads(record["meta"]) == {"id": "0007"}

    def test_columns_do_not_change_a_format_that_is_named(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        assert found(source, format="llava", columns={"answer": "a"})[0].name == "llava"

    def test_preferences_are_refused_unless_the_better_answers_are_taken(self, tmp_path: Path) -> None:
        record = {"prompt": "Who?", "chosen": "Ann.", "rejected": "Bo."}
        source = write_source(tmp_path / "pairs.jsonl", [record])
        with pytest.raises(UserError, match="it is preference: ") as caught:
            convert(source, tmp_path / "out", OPTIONS)
        assert caught.value.where == str(source)
        assert "--take chosen" in (caught.value.fix or "")
        assert {entry.name for entry in tmp_path.iterdir()} == {"pairs.jsonl"}
        convert(source, tmp_path / "out", ConversionOptions(take="chosen"))
        (made,) = written(tmp_path / "out")
        assert made["messages"][-1]["content"][0]["text"] == "Ann."

    def test_the_first_file_decides_for_all(self, tmp_path: Path) -> None:
        write_source(tmp_path / "in" / "part-0.jsonl", [text_record(0)])
        write_source(tmp_path / "in" / "part-1.jsonl", [{"messages": []}])
        report = convert(tmp_path / "in", tmp_path / "out", ANY_REJECTS)
        assert (report.written, report.reasons) == (1, {"bad_schema": 1})
        (reject,) = lines(tmp_path / "out" / "rejects.jsonl")
        assert (reject["file"], reject["ordinal"]) == ("part-1.jsonl", 0)

    def test_a_wrapper_is_taken_off_where_no_format_takes_the_whole(self, tmp_path: Path) -> None:
        source = tmp_path / "data.json"
        source.write_text(json.dumps({"version": "1", "data": [text_record(0), text_record(1)]}, indent=1))
        assert convert(source, tmp_path / "out", OPTIONS).source_records == 2
        assert texts(tmp_path / "out") == ["0?", "1?"]

    def test_a_format_that_finds_the_whole_file_wrong(self, tmp_path: Path) -> None:
        converter = tmp_path / "strict.py"
        converter.write_text(
            "from aria_finetune.data_formats.errors import RecordError\n"
            "from aria_finetune.data_formats.format import Format\n"
            "def unfold(records, context):\n"
            "    yield next(records)\n"
            "    raise RecordError('bad_schema', 'the second half is missing')\n"
            "FORMAT = Format('strict', '', '', {}, (), frozenset(), lambda r: True, lambda r, c: iter(()), unfold=unfold)\n"
        )
        source = write_source(tmp_path / "data.jsonl", [{}])
        with pytest.raises(UserError, match="bad_schema: the second half is missing") as caught:
            convert(source, tmp_path / "out", ConversionOptions(format="strict", converter=converter))
        assert caught.value.where == str(source)

    def test_nothing_that_can_be_parsed(self, tmp_path: Path) -> None:
        source = tmp_path / "data.jsonl"
        source.write_text("{a}\n{b}\n{c}\n")
        with pytest.raises(
            FormatError, match=r"none of its first 3 records can be parsed; the first: bad_json: line 1"
        ):
            found(source)
