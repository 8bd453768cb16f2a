"""A source becomes a data set that accounts for every record, or nothing is left at the output."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conversion_sources import (
    lines,
    listing,
    llava,
    names,
    sha256,
    text_record,
    write_image,
    write_source,
    write_video,
    written,
)
from PIL import Image

from aria_finetune import __version__
from aria_finetune.conversion import ConversionOptions, convert, engine, is_dataset, read_dataset
from aria_finetune.conversion.dataset import is_over_limit
from aria_finetune.errors import TooManyRejects, UserError

ANY_REJECTS = ConversionOptions(max_rejects=1000)


def test_records_media_and_accounts(tmp_path: Path) -> None:
    image = write_image(tmp_path / "in" / "images" / "a.png")
    video = write_video(tmp_path / "in" / "v.mp4")
    records = [
        llava("images/a.png", id="first"),
        llava("images/a.png", question="What?"),
        llava(question="<video>What?", video="v.mp4"),
        llava("images/gone.png"),
    ]
    source = write_source(tmp_path / "in" / "data.json", records)
    output = tmp_path / "out"
    report = convert(source, output, ANY_REJECTS)

    in_image = f"media/{sha256(image)[:2]}/{sha256(image)}.png"
    in_video = f"media/{sha256(video)[:2]}/{sha256(video)}.mp4"
    files = {"data-00000.jsonl", "manifest.json", "rejects.jsonl", "report.json", in_image, in_video}
    assert set(listing(output)) == files
    assert names(tmp_path) == {"in", "out"}
    assert (output / in_image).read_bytes() == image.read_bytes()

    made = lines(output / "data-00000.jsonl")
    assert made[0] == {
        "id": "llava:data.json:0",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "text": None, "media": 0},
                    {"type": "text", "text": "\nWhat?", "media": None},
                ],
                "train": None,
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "A cat.", "media": None}],
                "train": None,
            },
        ],
        "media": [
            {
                "kind": "image",
                "path": in_image,
                "sha256": sha256(image),
                "mime": "image/png",
                "width": 40,
                "height": 30,
                "frames": 1,
                "duration": None,
                "start": None,
                "end": None,
                "num_frames": None,
                "page": None,
                "origin": "images/a.png",
            }
        ],
        "references": [],
        "tools": None,
        "meta": '{"id":"first"}',
        "source": {"format": "llava", "file": "data.json", "ordinal": 0, "converter_version": __version__},
    }
    (clip,) = made[2]["media"]
    assert (clip["path"], clip["mime"], clip["frames"]) == (in_video, "video/mp4", 5)
    assert (clip["width"], clip["height"], clip["duration"]) == (64, 48, pytest.approx(0.5))

    (reject,) = lines(output / "rejects.jsonl")
    assert reject.pop("detail")
    assert reject == {
        "file": "data.json",
        "ordinal": 3,
        "sub": None,
        "id": "llava:data.json:3",
        "reason": "media_missing",
    }
    told = json.loads((output / "report.json").read_text())
    assert told == report.to_dict()
    assert told.pop("seconds") >= 0
    assert told == {
        "source_records": 4,
        "read": 4,
        "written": 3,
        "rejected": 1,
        "reasons": {"media_missing": 1},
        "repairs": {"placeholder_added": 1},
        "formats": {"llava": 4},
    }
    assert json.loads((output / "manifest.json").read_text()) == {
        "schema_version": 1,
        "converter_version": __version__,
        "format": "llava",
        "counts": {
            "source_records": 4,
            "read": 4,
            "written": 3,
            "rejected": 1,
            "media_files": 2,
            "media_bytes": image.stat().st_size + video.stat().st_size,
        },
        "shards": [{"file": "data-00000.jsonl", "records": 3, "sha256": sha256(output / "data-00000.jsonl")}],
        "options": ANY_REJECTS.to_dict(),
        "sources": [{"file": "data.json", "bytes": source.stat().st_size, "sha256": sha256(source)}],
    }


class TestSources:
    def test_a_folder_and_other_media_roots(self, tmp_path: Path) -> None:
        write_image(tmp_path / "in" / "a.png")
        write_image(tmp_path / "more" / "b.png", color="blue")
        write_source(tmp_path / "in" / "train.jsonl", [llava("b.png")])
        with pytest.raises(TooManyRejects):
            convert(tmp_path / "in", tmp_path / "out", ConversionOptions())
        options = ConversionOptions(media_roots=(tmp_path / "in", tmp_path / "more"))
        assert convert(tmp_path / "in", tmp_path / "out", options).written == 1

    def test_a_folder_of_images(self, tmp_path: Path) -> None:
        """Such a source has no bytes of its own; its names stand for them."""
        prints = []
        for name in ("a", "b"):
            write_image(tmp_path / "in" / "cat" / f"{name}.png")
            write_image(tmp_path / "in" / "dog" / f"{name}.png", color="blue")
            report = convert(tmp_path / "in", tmp_path / name, ConversionOptions())
            assert report.written == len(list((tmp_path / "in").rglob("*.png")))
            (source,) = json.loads((tmp_path / name / "manifest.json").read_text())["sources"]
            assert (source["file"], source["bytes"]) == ("in", 0)
            prints.append(source["sha256"])
        assert prints[0] != prints[1]

    def test_a_data_uri_becomes_a_file_of_its_real_type(self, tmp_path: Path) -> None:
        image = write_image(tmp_path / "a.jpg")
        uri = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
        source = write_source(tmp_path / "in" / "data.jsonl", [llava(uri)])
        convert(source, tmp_path / "out", ConversionOptions())
        (record,) = read_dataset(tmp_path / "out")
        (medium,) = record.media
        assert Path(medium.path or "").read_bytes() == image.read_bytes()
        assert (medium.path or "").endswith(f"{sha256(image)}.jpg")
        assert medium.mime == "image/jpeg"
        assert len(medium.origin) == 120

    def test_a_video_as_data_uri(self, tmp_path: Path) -> None:
        video = write_video(tmp_path / "v.mp4")
        uri = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
        source = write_source(tmp_path / "in" / "data.jsonl", [llava(question="<video>What?", video=uri)])
        convert(source, tmp_path / "out", ConversionOptions())
        (record,) = read_dataset(tmp_path / "out")
        assert Path(record.media[0].path or "").read_bytes() == video.read_bytes()
        assert record.media[0].frames == 5

    def test_pages_of_a_document(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        pages = [Image.new("RGB", (200, 100)), Image.new("RGB", (72, 144))]
        pages[0].save(tmp_path / "in" / "a.pdf", save_all=True, append_images=pages[1:])
        convert(tmp_path / "in", tmp_path / "out", ConversionOptions(evaluation=True, format="pdf-folder"))
        hash_ = sha256(tmp_path / "in" / "a.pdf")
        media = [medium for record in written(tmp_path / "out") for medium in record["media"]]
        assert {medium["mime"] for medium in media} == {"application/pdf"}
        assert {medium["path"] for medium in media} == {f"media/{hash_[:2]}/{hash_}.pdf"}

    def test_a_data_set_is_not_converted_again(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        convert(source, tmp_path / "out", ConversionOptions())
        with pytest.raises(UserError, match="converted data set already"):
            convert(tmp_path / "out", tmp_path / "again", ConversionOptions())


class TestTooManyRejects:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return write_source(tmp_path / "data.jsonl", [*(llava(f"{number}.png") for number in range(7)), text_record(1)])

    def test_the_data_set_is_there_and_says_so(self, tmp_path: Path, source: Path) -> None:
        with pytest.raises(TooManyRejects) as caught:
            convert(source, tmp_path / "out", ConversionOptions(max_rejects=6))
        assert caught.value.exit_code == 3
        message = str(caught.value)
        assert "7 of 8 conversations were rejected, 6 allowed (media_missing 7)" in message
        assert message.count("data.jsonl:") == 5
        assert str(tmp_path / "out" / "rejects.jsonl") in message
        assert "--max-rejects 7" in message
        assert names(tmp_path) == {"data.jsonl", "out"}
        assert set(listing(tmp_path / "out")) == {"data-00000.jsonl", "manifest.json", "rejects.jsonl", "report.json"}
        assert len(lines(tmp_path / "out" / "rejects.jsonl")) == 7
        assert len(written(tmp_path / "out")) == 1
        assert json.loads((tmp_path / "out" / "report.json").read_text())["rejected"] == 7
        assert is_dataset(tmp_path / "out")
        assert is_over_limit(tmp_path / "out")

    def test_converting_again_replaces_it(self, tmp_path: Path, source: Path) -> None:
        for allowed in (0, 6):
            with pytest.raises(TooManyRejects):
                convert(source, tmp_path / "out", ConversionOptions(max_rejects=allowed))
            assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]["max_rejects"] == allowed
        assert convert(source, tmp_path / "out", ConversionOptions(max_rejects=7)).rejected == 7
        assert not is_over_limit(tmp_path / "out")
        with pytest.raises(UserError, match="already"):
            convert(source, tmp_path / "out", ConversionOptions(max_rejects=7))

    def test_it_stays_until_the_next_is_complete(
        self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(TooManyRejects):
            convert(source, tmp_path / "out", ConversionOptions())
        before = listing(tmp_path / "out")
        with monkeypatch.context() as patched:
            patched.setattr(engine.rules, "checked", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                convert(source, tmp_path / "out", ANY_REJECTS)
        assert listing(tmp_path / "out") == before

    def test_as_many_as_allowed_are_fine(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [llava("a.png"), text_record(1)])
        assert convert(source, tmp_path / "out", ConversionOptions(max_rejects=1)).rejected == 1
        assert not is_over_limit(tmp_path / "out")

    def test_a_set_of_which_all_is_rejected(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [llava("a.png")])
        with pytest.raises(TooManyRejects):
            convert(source, tmp_path / "out", ConversionOptions())
        assert is_over_limit(tmp_path / "out")
        assert written(tmp_path / "out") == []

    def test_a_lone_surrogate_in_a_detail_is_written_as_json(self, tmp_path: Path) -> None:
        source = tmp_path / "data.jsonl"
        source.write_text(json.dumps(text_record(1)) + '\n{"\\ud800": 1, "conversations": [{"from": "\\ud800"}]}\n')
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert lines(tmp_path / "out" / "rejects.jsonl")[0]["reason"] == "bad_roles"


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


class TestNothingHalfDone:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_an_interruption_leaves_nothing_at_the_output(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        source = write_source(tmp_path / "data.jsonl", [text_record(1), text_record(2)])
        checked: Callable[..., object] = engine.rules.checked
        seen: list[object] = []

        def interrupted(*arguments: object, **more: object) -> object:
            seen.append(arguments)
            if len(seen) == 2:
                raise error
            return checked(*arguments, **more)

        with monkeypatch.context() as patched:
            patched.setattr(engine.rules, "checked", interrupted)
            with pytest.raises(error):
                convert(source, tmp_path / "out", ConversionOptions())
        assert names(tmp_path) == {"data.jsonl", ".out.converting"}
        assert convert(source, tmp_path / "out", ConversionOptions()).written == 2
        assert names(tmp_path) == {"data.jsonl", "out"}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b'{"what": "x"}\n', "no known format"),
            (b"", "no record"),
            (b"{a\n{b\n", "none of its first 2 records"),
            (b"a\n", "neither JSON nor a table"),
            (b'{"conversations": [{"from": "human", "value": "x"}]}\n"\xff"', "byte 54"),
            (b'[{"conversations": [{"from": "human", "value": "x"}]},\n{"conv', "line 2"),
        ],
    )
    def test_a_source_that_can_not_be_read(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "data.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            convert(tmp_path / "data.jsonl", tmp_path / "out", ConversionOptions())
        assert (caught.value.where or "").endswith("data.jsonl")
        assert caught.value.fix
        assert names(tmp_path) == {"data.jsonl"}

    def test_an_unknown_format(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        with pytest.raises(UserError, match="no format 'llavva'"):
            convert(source, tmp_path / "out", ConversionOptions(format="llavva"))
        assert names(tmp_path) == {"data.jsonl"}

    def test_an_output_that_can_not_be_made(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        with pytest.raises(UserError, match="Not a directory"):
            convert(source, source / "out", ConversionOptions())

    def test_options_that_contradict_each_other(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        with pytest.raises(UserError, match="--media copy needs the files"):
            convert(source, tmp_path / "out", ConversionOptions(media="copy", verify="none"))
        assert names(tmp_path) == {"data.jsonl"}

    def test_folders_above_the_output_are_made(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        convert(source, tmp_path / "a" / "b" / "out", ConversionOptions())
        assert is_dataset(tmp_path / "a" / "b" / "out")
