"""Data files of a set: lines or Parquet, the same records either way."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from conversion_sources import (
    lines,
    listing,
    llava,
    mixed_records,
    names,
    sha256,
    steady,
    text_record,
    write_image,
    write_source,
    write_video,
    written,
)
from pyarrow import parquet

from aria_finetune.conversion import ConversionOptions, convert, shards
from aria_finetune.conversion.shards import JsonlShards, ParquetShards, parquet_schema, shard_writer
from aria_finetune.data_formats import Media, Message, Part, Record, Source
from aria_finetune.errors import UserError

ANY_REJECTS = ConversionOptions(max_rejects=10_000)
PACKED = ConversionOptions(max_rejects=10_000, pack="parquet")


def record(number: int, *paths: str | None) -> Record:
    """A record with every field in use."""
    content = (*(Part("image", media=place) for place in range(len(paths))), Part("text", text=f"Grün {number}\u2028"))
    return Record(
        f"x:y:{number}",
        (Message("user", content), Message("assistant", (Part("text", text="A"),), train=False)),
        tuple(Media("image", path, "ab", "image/png", 4, 3, 1, 0.5, 1.0, 2.0, 8, 1, "o") for path in paths),
        ("A", "a"),
        '[{"name": "f"}]',
        '{"n":1}',
        Source("x", "y", number, "0"),
    )


def rows(path: Path) -> list[dict[str, object]]:
    return parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]


class TestLines:
    def test_one_compact_line_for_each_record(self, tmp_path: Path) -> None:
        writer = shard_writer("jsonl", lambda number: tmp_path / f"{number}", pytest.fail)
        assert isinstance(writer, JsonlShards)
        writer.add(record(0, "media/a.png"))
        writer.add(record(1))
        writer.close()
        data = (tmp_path / "0").read_bytes()
        assert data.startswith(
            b'{"id":"x:y:0","messages":[{"role":"user","content":[{"type":"image","text":null,"media":0},'
        )
        assert data.endswith(b"\n")
        assert "Grün 0\u2028".encode() in data
        assert lines(tmp_path / "0") == [record(0, "media/a.png").to_dict(), record(1).to_dict()]
        assert writer.written == [(tmp_path / "0", 2, sha256(tmp_path / "0"))]

    @pytest.mark.parametrize("buffered", [1, 2, 2000])
    def test_files_of_so_many_records(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffered: int) -> None:
        monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 3)
        monkeypatch.setattr(shards, "_BUFFERED_LINES", buffered)
        for count, expected in ((0, [0]), (1, [1]), (3, [3]), (7, [3, 3, 1])):
            writer = JsonlShards(lambda number, count=count: tmp_path / f"{count}-{number}")  # type: ignore[misc]
            for number in range(count):
                writer.add(record(number))
            writer.close()
            assert [len(lines(path)) for path, _, _ in writer.written] == expected
            assert [records for _, records, _ in writer.written] == expected
            assert [hash_ for *_, hash_ in writer.written] == [sha256(path) for path, *_ in writer.written]

    def test_a_data_set_of_several_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 2)
        source = write_source(tmp_path / "data.jsonl", [text_record(number) for number in range(5)])
        convert(source, tmp_path / "out", ConversionOptions())
        assert [len(lines(tmp_path / "out" / f"data-{number:05d}.jsonl")) for number in range(3)] == [2, 2, 1]
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert [shard["records"] for shard in manifest["shards"]] == [2, 2, 1]

    def test_a_data_set_without_a_record(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [llava(answer="")])
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert (tmp_path / "out" / "data-00000.jsonl").read_bytes() == b""
        convert(source, tmp_path / "packed", PACKED)
        assert rows(tmp_path / "packed" / "data-00000.parquet") == []


class TestParquet:
    def test_its_schema(self) -> None:
        part = "struct<type: string, text: string, media: int32>"
        medium = (
            "struct<kind: string, path: string, bytes: binary, sha256: string, mime: string, width: int32, height: int32,"
            " frames: int32, duration: double, start: double, end: double, num_frames: int32, page: int32, origin: string>"
        )
        assert {
            field.name: str(field.type).replace("item: ", "").replace("element: ", "") for field in parquet_schema()
        } == {
            "id": "string",
            "messages": f"list<struct<role: string, content: list<{part}>, train: bool>>",
            "media": f"list<{medium}>",
            "references": "list<string>",
            "tools": "string",
            "meta": "string",
            "source": "struct<format: string, file: string, ordinal: int64, converter_version: string>",
        }

    def test_the_records_of_the_lines_with_the_bytes_of_media(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        records = [*mixed_records(folder, 250), llava(question="<video>?", video="v.mp4")]
        write_video(folder / "v.mp4")
        source = write_source(folder / "data.jsonl", records)
        convert(source, tmp_path / "lines", ANY_REJECTS)
        convert(source, tmp_path / "packed", PACKED)
        assert names(tmp_path / "packed") == {"data-00000.parquet", "manifest.json", "rejects.jsonl", "report.json"}
        path = tmp_path / "packed" / "data-00000.parquet"
        assert parquet.read_schema(path).equals(parquet_schema())
        expected = written(tmp_path / "lines")
        for row in expected:
            for medium in row["media"]:
                medium["bytes"] = (tmp_path / "lines" / medium["path"]).read_bytes()
                medium["path"] = None
        assert rows(path) == expected
        described = parquet.ParquetFile(path).metadata
        assert [described.row_group(group).num_rows for group in range(described.num_row_groups)] == [
            100,
            len(expected) - 100,
        ]
        column = described.row_group(0).column(0)
        assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)
        manifest = json.loads((tmp_path / "packed" / "manifest.json").read_text())
        assert manifest["shards"] == [{"file": path.name, "records": len(expected), "sha256": sha256(path)}]

    def test_the_same_bytes_every_time(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 30))
        convert(source, tmp_path / "one", PACKED)
        convert(source, tmp_path / "two", PACKED)
        assert steady(tmp_path / "one") == steady(tmp_path / "two")

    def test_a_new_file_for_so_many_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shards, "PARQUET_SHARD_BYTES", 250)
        (tmp_path / "a.png").write_bytes(b"x" * 100)
        writer = shard_writer(
            "parquet", lambda number: tmp_path / f"{number}", lambda path: (tmp_path / path).read_bytes()
        )
        assert isinstance(writer, ParquetShards)
        for number in range(7):
            writer.add(record(number, "a.png"))
        writer.close()
        assert [len(rows(path)) for path, _, _ in writer.written] == [3, 3, 1]
        assert [(records, hash_) for _, records, hash_ in writer.written] == [
            (count, sha256(tmp_path / str(number))) for number, count in enumerate([3, 3, 1])
        ]
        first = rows(tmp_path / "0")[0]
        assert first["media"][0]["bytes"] == b"x" * 100  # type: ignore[index]
        assert {**first, "media": []} == {**record(0).to_dict(), "messages": first["messages"]}

    def test_a_new_row_group_for_so_many_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 250)
        monkeypatch.setattr(shards, "PARQUET_SHARD_BYTES", 800)
        (tmp_path / "a.png").write_bytes(b"x" * 100)
        writer = shard_writer(
            "parquet", lambda number: tmp_path / f"{number}", lambda path: (tmp_path / path).read_bytes()
        )
        for number in range(11):
            writer.add(record(number, "a.png"))
        writer.close()
        found = [parquet.ParquetFile(path).metadata for path, _, _ in writer.written]
        sizes = [[file.row_group(group).num_rows for group in range(file.num_row_groups)] for file in found]
        assert sizes == [[3, 3, 2], [3]]

    def test_media_that_are_left_in_place_are_packed_as_well(self, tmp_path: Path) -> None:
        image = write_image(tmp_path / "in" / "a.png")
        source = write_source(tmp_path / "in" / "data.jsonl", [llava("a.png")])
        convert(source, tmp_path / "out", ConversionOptions(pack="parquet", media="reference"))
        ((row,), files) = rows(tmp_path / "out" / "data-00000.parquet"), names(tmp_path / "out")
        (medium,) = row["media"]  # type: ignore[misc]
        assert (medium["bytes"], medium["path"], medium["width"]) == (image.read_bytes(), None, 40)
        assert "media" not in files

    def test_media_that_nobody_looked_for(self, tmp_path: Path) -> None:
        image = write_image(tmp_path / "in" / "a.png")
        references = ["a.png", "missing.png", "https://host/a.png", "."]
        source = write_source(tmp_path / "in" / "data.jsonl", [llava(reference) for reference in references])
        report = convert(source, tmp_path / "out", ConversionOptions(pack="parquet", verify="none"))
        assert report.written == 4
        media = [row["media"][0] for row in rows(tmp_path / "out" / "data-00000.parquet")]  # type: ignore[index]
        assert [medium["bytes"] for medium in media] == [image.read_bytes(), None, None, None]
        assert media[1]["path"] == str(tmp_path / "in" / "missing.png")
        assert [medium["path"] for medium in media[::2]] == [None, None]
        assert [medium["origin"] for medium in media] == references

    def test_a_copy_that_is_gone_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def gone(_: object, path: str) -> bytes:
            return (tmp_path / "nowhere" / path).read_bytes()

        monkeypatch.setattr("aria_finetune.conversion.media_store.CopyingStore.read", gone)
        write_image(tmp_path / "in" / "a.png")
        source = write_source(tmp_path / "in" / "data.jsonl", [llava("a.png")])
        with pytest.raises(UserError, match="No such file"):
            convert(source, tmp_path / "out", PACKED)

    def test_it_can_be_read_without_this_program(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 30))
        convert(source, tmp_path / "out", PACKED)
        table = pa.concat_tables([parquet.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))])
        assert table.validate(full=True) is None
        again = tmp_path / "again.parquet"
        parquet.write_table(table, again)
        assert rows(again) == table.to_pylist()
        assert listing(tmp_path / "out").keys() == {
            "data-00000.parquet",
            "manifest.json",
            "rejects.jsonl",
            "report.json",
        }
