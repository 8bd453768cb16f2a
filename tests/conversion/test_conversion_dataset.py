"""A converted data set is read back as it was written, and nothing else passes for one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conversion_sources import llava, text_record, write_image, write_source, write_video

from aria_finetune.conversion import ConversionOptions, Reject, convert, is_dataset, read_dataset
from aria_finetune.conversion.dataset import is_over_limit
from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.media.row_groups import RowGroups


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_image(tmp_path / "a.png")
    source = write_source(tmp_path / "data.jsonl", [llava("a.png"), text_record("\u2028\x85")])
    convert(source, tmp_path / "out", ConversionOptions())
    return tmp_path / "out"


class TestWhatItIs:
    def test_a_data_set(self, dataset: Path) -> None:
        assert is_dataset(dataset)
        assert not is_over_limit(dataset)

    def test_no_data_set(self, tmp_path: Path) -> None:
        assert not is_dataset(tmp_path)
        assert not is_dataset(tmp_path / "nowhere")
        assert not is_over_limit(tmp_path)
        with pytest.raises(UserError, match="no converted data set"):
            list(read_dataset(tmp_path))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"counts": {}}'])
    def test_a_damaged_one_is_over_no_limit(self, dataset: Path, text: str) -> None:
        (dataset / "manifest.json").write_text(text)
        assert is_dataset(dataset)
        assert not is_over_limit(dataset)

    def test_one_with_too_many_rejects(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [llava("a.png"), text_record(1)])
        with pytest.raises(TooManyRejects):
            convert(source, tmp_path / "out", ConversionOptions())
        assert is_over_limit(tmp_path / "out")
        with pytest.raises(UserError, match="1 conversations were rejected when it was converted, 0 allowed") as caught:
            list(read_dataset(tmp_path / "out"))
        assert caught.value.where == str(tmp_path / "out")
        assert "--max-rejects 1" in (caught.value.fix or "")


class TestReading:
    def test_what_was_written_is_read(self, dataset: Path) -> None:
        first, second = read_dataset(dataset, verify=True)
        assert Path(first.media[0].path or "").is_file()
        assert Path(first.media[0].path or "").is_absolute()
        assert second.messages[0].content[0].text == "\u2028\x85?"

    @pytest.mark.parametrize("pack", ["jsonl", "parquet"])
    def test_either_packing_holds_the_same(self, tmp_path: Path, dataset: Path, pack: str) -> None:
        packed = ConversionOptions(pack=pack)  # type: ignore[arg-type]
        convert(tmp_path / "data.jsonl", tmp_path / "again", packed)
        ours = list(read_dataset(tmp_path / "again", verify=True, media_store=tmp_path / "store"))
        theirs = list(read_dataset(dataset))
        for one, other in zip(ours, theirs, strict=True):
            assert (one.id, one.messages, one.meta, one.source) == (other.id, other.messages, other.meta, other.source)
            for medium, twin in zip(one.media, other.media, strict=True):
                content = RowGroups().read(Path(medium.path or ""), medium.packed) if medium.packed else None
                assert (content is None) == (pack == "jsonl")
                assert (content or Path(medium.path or "").read_bytes()) == Path(twin.path or "").read_bytes()
                assert (medium.width, medium.sha256, medium.origin) == (twin.width, twin.sha256, twin.origin)

    def test_what_is_no_image_comes_out_of_parquet_as_a_file(self, tmp_path: Path) -> None:
        image, clip = write_image(tmp_path / "a.png"), write_video(tmp_path / "v.mp4")
        records = [llava("a.png"), llava(question="<video>?", video="v.mp4"), text_record(1), llava("a.png")]
        convert(write_source(tmp_path / "data.jsonl", records), tmp_path / "out", ConversionOptions(pack="parquet"))
        store = tmp_path / "store"
        first, second, third, fourth = read_dataset(tmp_path / "out", media_store=store)
        (stored,) = [path for path in store.rglob("*") if path.is_file()]
        assert stored.read_bytes() == clip.read_bytes()
        assert (second.media[0].path, second.media[0].packed, third.media) == (str(stored), None, ())
        assert [record.media[0].packed for record in (first, fourth)] == [(0, 0, 0), (0, 3, 0)]
        shard = tmp_path / "out" / "data-00000.parquet"
        assert {record.media[0].name for record in (first, fourth)} == {f"{shard}#0.0.0", f"{shard}#0.3.0"}
        assert RowGroups().read(shard, (0, 3, 0)) == image.read_bytes()

    def test_images_that_were_not_measured_come_out_of_parquet_and_are(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png")
        source = write_source(tmp_path / "data.jsonl", [llava("a.png")])
        convert(source, tmp_path / "out", ConversionOptions(pack="parquet", verify="none"))
        (record,) = read_dataset(tmp_path / "out", media_store=tmp_path / "store")
        assert (record.media[0].width, record.media[0].packed) == (40, None)
        assert Path(record.media[0].path or "").is_relative_to(tmp_path / "store")

    def test_lines_can_not_say_that_a_medium_is_packed(self, dataset: Path) -> None:
        """Else a path could lead anywhere."""
        lines = dataset / "data-00000.jsonl"
        lines.write_text(lines.read_text().replace('"origin":', '"packed":[0,0,0],"origin":', 1))
        with pytest.raises(UserError, match="the data set is damaged: 'packed' is no field"):
            list(read_dataset(dataset))

    def test_media_that_were_not_measured_are_measured(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png")
        (tmp_path / "b.png").write_text("no image")
        source = write_source(tmp_path / "data.jsonl", [llava("a.png"), llava("b.png"), llava("c.png")])
        convert(source, tmp_path / "out", ConversionOptions(verify="none"))
        records = read_dataset(tmp_path / "out")
        assert next(records).media[0].width == 40
        with pytest.raises(UserError, match=r"data-00000\.jsonl:2.*media_unreadable"):
            next(records)
        rejects: list[Reject] = []
        assert len(list(read_dataset(tmp_path / "out", on_reject=rejects.append))) == 1
        assert [(reject.ordinal, reject.reason) for reject in rejects] == [
            (1, "media_unreadable"),
            (2, "media_missing"),
        ]

    def test_media_paths_are_real_ones(self, dataset: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(dataset)
        first, _ = read_dataset(tmp_path / "link")
        path = first.media[0].path or ""
        assert path == os.path.realpath(path)
        assert Path(path).is_relative_to(dataset)

    def test_a_link_out_of_the_data_set_is_refused(self, dataset: Path, tmp_path: Path) -> None:
        (copy,) = (dataset / "media").glob("*/*.png")
        copy.unlink()
        copy.symlink_to(tmp_path / "a.png")
        with pytest.raises(UserError, match=r"data-00000\.jsonl:1: .* a link that leaves the data set"):
            list(read_dataset(dataset))


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "schema version 2"),
            (lambda text: text[:40], "manifest is damaged"),
            (lambda text: text.replace("shards", "parts"), "manifest is damaged"),
            (lambda text: text.replace('"records": 2', '"records": 3'), "2 records where the manifest says 3"),
        ],
    )
    def test_a_manifest_that_does_not_fit(self, dataset: Path, change: Callable[[str], str], message: str) -> None:
        manifest = dataset / "manifest.json"
        manifest.write_text(change(manifest.read_text()))
        with pytest.raises(UserError, match=message):
            list(read_dataset(dataset))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("A cat.", "A dog.", None),
            ('"messages":[', '"messages":[,', r"data-00000\.jsonl:1: .*damaged"),
            ('"kind":"image",', "", r"data-00000\.jsonl:1: .*damaged"),
            ('"path":"media/', '"path":"/media/', "leaves the data set"),
            ('"path":"media/', '"path":"media/../../', "leaves the data set"),
        ],
    )
    def test_a_shard_that_was_changed(self, dataset: Path, old: str, new: str, message: str | None) -> None:
        shard = dataset / "data-00000.jsonl"
        text = shard.read_text(encoding="utf-8")
        assert old in text
        shard.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match="not the one that was written"):
            list(read_dataset(dataset, verify=True))
        if message:
            with pytest.raises(UserError, match=message):
                list(read_dataset(dataset))

    def test_a_shard_that_is_gone(self, dataset: Path) -> None:
        manifest = json.loads((dataset / "manifest.json").read_text())
        manifest["shards"].append({"file": "data-00001.jsonl", "records": 1, "sha256": ""})
        (dataset / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="the data set is damaged"):
            list(read_dataset(dataset))
