"""A source becomes a data set that accounts for every record, or nothing is left of it."""

import base64
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from aria_finetune.conversion import (
    ConversionOptions,
    Reject,
    convert,
    engine,
    is_dataset,
    read_dataset,
    read_records,
    shards,
)
from aria_finetune.data_formats import Media, Message, Part, Record, RecordError, Source, registry
from aria_finetune.data_formats.format import Format
from aria_finetune.errors import TooManyRejects, UserError

ANY_REJECTS = ConversionOptions(max_rejects=1000)


def llava(image=None, question="<image>\nWhat?", answer="A cat.", **rest):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **rest}


def text_record(number):
    return llava(question=f"{number}?", answer=f"{number}!")


def write_image(path, size=(40, 30), color="red", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def write_video(path, frames=5, size=(64, 48)):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = size
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), number * 40, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_source(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def listing(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestOutput:
    def test_records_media_and_accounts(self, tmp_path):
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
        assert set(listing(output)) == {
            "data-00000.jsonl", "manifest.json", "rejects.jsonl", "report.json", in_image, in_video
        }  # fmt: skip
        assert (output / in_image).read_bytes() == image.read_bytes()

        written = lines(output / "data-00000.jsonl")
        assert written[0] == {
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
            "source": {"format": "llava", "file": "data.json", "ordinal": 0, "converter_version": "0.1.0"},
        }
        (clip,) = written[2]["media"]
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
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["schema_version"] == 1
        assert manifest["shards"] == [
            {"file": "data-00000.jsonl", "records": 3, "sha256": sha256(output / "data-00000.jsonl")}
        ]
        assert manifest["format"] == "llava"
        assert manifest["sources"] == [{"file": "data.json", "bytes": source.stat().st_size, "sha256": sha256(source)}]
        assert manifest["counts"]["media_files"] == 2
        assert manifest["options"]["verify"] == "header"

    def test_the_same_bytes_every_time(self, tmp_path):
        write_image(tmp_path / "in" / "a.png")
        source = write_source(tmp_path / "in" / "data.jsonl", [llava("a.png"), llava("b.png"), text_record(1)])
        found = []
        for name in ("one", "two"):
            convert(source, tmp_path / name, ANY_REJECTS)
            files = listing(tmp_path / name)
            report = json.loads(files.pop("report.json"))
            report.pop("seconds")
            found.append((files, report))
        assert found[0] == found[1]

    def test_shards(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 2)
        source = write_source(tmp_path / "data.jsonl", [text_record(number) for number in range(5)])
        convert(source, tmp_path / "out", ConversionOptions())
        counts = [len(lines(tmp_path / "out" / f"data-{number:05d}.jsonl")) for number in range(3)]
        assert counts == [2, 2, 1]
        ids = [record.id for record in read_dataset(tmp_path / "out", verify=True)]
        assert ids == [f"llava:data.jsonl:{number}" for number in range(5)]

    def test_several_candidates_of_one_record(self, tmp_path, monkeypatch):
        chat = registry.get("llava")

        def questions(record, context):
            for question in record["questions"]:
                if question is None:
                    yield RecordError("empty_answer", "none")
                else:
                    yield from chat.convert(text_record(question))
            if record.get("broken"):
                raise RecordError("bad_schema", "cut")

        form = Format("qa", "", "", {}, (), frozenset(), lambda record: "questions" in record, questions)
        monkeypatch.setattr(registry, "get", lambda *_: form)
        source = write_source(
            tmp_path / "q.json",
            [{"questions": [1, None, 3]}, {"questions": [4]}, {"questions": [5], "broken": True}, {"questions": []}],
        )
        report = convert(source, tmp_path / "out", ConversionOptions(format="qa", max_rejects=9))
        assert (report.source_records, report.read, report.written, report.rejected) == (4, 7, 4, 3)
        written = [record["id"] for record in lines(tmp_path / "out" / "data-00000.jsonl")]
        assert written == ["qa:q.json:0.0", "qa:q.json:0.2", "qa:q.json:1", "qa:q.json:2.0"]
        rejects = [(line["id"], line["sub"], line["reason"]) for line in lines(tmp_path / "out" / "rejects.jsonl")]
        assert rejects == [
            ("qa:q.json:0.1", 1, "empty_answer"),
            ("qa:q.json:2.1", 1, "bad_schema"),
            ("qa:q.json:3", None, "bad_schema"),
        ]

    def test_a_data_uri_becomes_a_file_of_its_real_type(self, tmp_path):
        image = write_image(tmp_path / "a.jpg")
        uri = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
        source = write_source(tmp_path / "in" / "data.jsonl", [llava(uri)])
        convert(source, tmp_path / "out", ConversionOptions())
        (record,) = read_dataset(tmp_path / "out")
        (medium,) = record.media
        assert Path(medium.path).read_bytes() == image.read_bytes()
        assert medium.path.endswith(f"{sha256(image)}.jpg")
        assert medium.mime == "image/jpeg"
        assert len(medium.origin) == 120

    def test_a_video_as_data_uri(self, tmp_path):
        video = write_video(tmp_path / "v.mp4")
        uri = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
        source = write_source(tmp_path / "in" / "data.jsonl", [llava(question="<video>What?", video=uri)])
        convert(source, tmp_path / "out", ConversionOptions())
        (record,) = read_dataset(tmp_path / "out")
        assert Path(record.media[0].path).read_bytes() == video.read_bytes()
        assert record.media[0].frames == 5

    def test_a_folder_as_source_and_other_media_roots(self, tmp_path):
        write_image(tmp_path / "in" / "a.png")
        write_image(tmp_path / "more" / "b.png", color="blue")
        write_source(tmp_path / "in" / "train.jsonl", [llava("b.png")])
        with pytest.raises(TooManyRejects):
            convert(tmp_path / "in", tmp_path / "out", ConversionOptions())
        options = ConversionOptions(media_roots=(tmp_path / "in", tmp_path / "more"))
        assert convert(tmp_path / "in", tmp_path / "out", options).written == 1


class TestRejects:
    def test_every_bad_record_has_its_reason(self, tmp_path):
        write_image(tmp_path / "in" / "a.png")
        write_image(tmp_path / "outside.png")
        (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:20])
        (tmp_path / "in" / "none.png").write_bytes(b"")
        write_image(tmp_path / "in" / "large.png", size=(200, 200))
        write_image(tmp_path / "in" / "small.png", size=(40, 2))
        cases = [
            (llava("a.png"), None),
            (llava("../outside.png"), "media_unsafe_path"),
            (llava(str(tmp_path / "outside.png")), "media_unsafe_path"),
            (llava("https://host/a.png"), "media_remote"),
            (llava("b.png"), "media_missing"),
            (llava("cut.png"), "media_unreadable"),
            (llava("none.png"), "media_unreadable"),
            (llava("data:image/png;base64,!!!!"), "media_unreadable"),
            (llava("large.png"), "media_too_large"),
            (llava("small.png"), "media_too_small"),
            (llava("a.png", answer=" "), "empty_answer"),
            (llava(["a.png", "a.png"]), "placeholder_mismatch"),
            (llava("a.png", answer="\ud800"), "bad_text"),
            ({"conversations": "none"}, "bad_schema"),
        ]
        source = write_source(tmp_path / "in" / "data.jsonl", [record for record, _ in cases])
        with source.open("a") as stream:
            stream.write('{"conversations": [\n')
        report = convert(source, tmp_path / "out", ConversionOptions(max_rejects=99, max_pixels=20_000))
        expected = [reason for _, reason in cases if reason] + ["bad_json"]
        assert [line["reason"] for line in lines(tmp_path / "out" / "rejects.jsonl")] == expected
        assert report.reasons == Counter(expected)
        assert (report.read, report.written) == (len(cases) + 1, 1)

    def test_a_rejected_record_leaves_no_media(self, tmp_path):
        write_image(tmp_path / "in" / "a.png")
        source = write_source(tmp_path / "in" / "data.jsonl", [llava(["a.png", "b.png"], question="<image><image>")])
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert not (tmp_path / "out" / "media").exists()

    def test_too_many_are_told_and_the_data_set_is_not_read(self, tmp_path):
        records = [llava(f"{number}.png") for number in range(7)] + [text_record(1)]
        source = write_source(tmp_path / "data.jsonl", records)
        with pytest.raises(TooManyRejects) as caught:
            convert(source, tmp_path / "out", ConversionOptions(max_rejects=6))
        assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "out"}
        assert len(lines(tmp_path / "out" / "rejects.jsonl")) == 7
        assert len(lines(tmp_path / "out" / "data-00000.jsonl")) == 1
        assert json.loads((tmp_path / "out" / "report.json").read_text())["rejected"] == 7
        message = str(caught.value)
        assert "7 of 8 conversations were rejected, 6 allowed (media_missing 7)" in message
        assert message.count("data.jsonl:") == 5
        assert str(tmp_path / "out" / "rejects.jsonl") in message
        assert caught.value.exit_code == 3
        with pytest.raises(UserError, match="7 conversations were rejected when it was converted, 6 allowed"):
            list(read_dataset(tmp_path / "out"))
        convert(source, tmp_path / "out", ConversionOptions(max_rejects=7))
        assert len(list(read_dataset(tmp_path / "out"))) == 1

    def test_as_many_as_allowed_are_fine(self, tmp_path):
        source = write_source(tmp_path / "data.jsonl", [llava("a.png"), text_record(1)])
        assert convert(source, tmp_path / "out", ConversionOptions(max_rejects=1)).rejected == 1

    def test_a_lone_surrogate_in_a_detail_is_written_as_json(self, tmp_path):
        source = tmp_path / "data.jsonl"
        source.write_text(json.dumps(text_record(1)) + '\n{"\\ud800": 1, "conversations": [{"from": "\\ud800"}]}\n')
        convert(source, tmp_path / "out", ANY_REJECTS)
        assert lines(tmp_path / "out" / "rejects.jsonl")[0]["reason"] == "bad_roles"


class TestVerification:
    @pytest.mark.parametrize(
        ("verify", "written"), [("none", [0, 1, 2, 3]), ("stat", [0, 1, 2]), ("header", [0, 1]), ("decode", [0])]
    )
    def test_how_far_a_file_is_looked_into(self, tmp_path, verify, written):
        pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
        whole = tmp_path / "whole.png"
        Image.fromarray(pixels).save(whole)
        (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:50_000])
        (tmp_path / "text.png").write_text("not an image")
        (tmp_path / "none.png").write_bytes(b"")
        names = ["whole.png", "cut.png", "text.png", "none.png"]
        source = write_source(tmp_path / "data.jsonl", [llava(name) for name in names])
        convert(source, tmp_path / "out", ConversionOptions(verify=verify, max_rejects=9))
        found = [record["source"]["ordinal"] for record in lines(tmp_path / "out" / "data-00000.jsonl")]
        assert found == written

    @pytest.mark.parametrize("verify", ["none", "stat", "header", "decode"])
    def test_a_sound_video_passes(self, tmp_path, verify):
        write_video(tmp_path / "v.mp4")
        source = write_source(tmp_path / "data.jsonl", [llava(question="<video>What?", video="v.mp4")])
        convert(source, tmp_path / "out", ConversionOptions(verify=verify))
        (record,) = read_dataset(tmp_path / "out")
        (medium,) = record.media
        assert (medium.width, medium.height, medium.frames) == (64, 48, 5)
        assert medium.path.endswith(".mp4")

    def test_media_that_were_not_measured_are_measured_on_reading(self, tmp_path):
        write_image(tmp_path / "a.png")
        (tmp_path / "b.png").write_text("no image")
        source = write_source(tmp_path / "data.jsonl", [llava("a.png"), llava("b.png")])
        convert(source, tmp_path / "out", ConversionOptions(verify="none"))
        records = read_dataset(tmp_path / "out")
        assert next(records).media[0].width == 40
        with pytest.raises(UserError, match=r"data-00000\.jsonl:2.*media_unreadable"):
            next(records)


class TestNothingHalfDone:
    def test_an_output_in_use_is_refused(self, tmp_path):
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("keep")
        for output in (tmp_path / "out", source):
            with pytest.raises(UserError, match="already") as caught:
                convert(source, output, ConversionOptions())
            assert caught.value.fix
        assert listing(tmp_path / "out") == {"mine.txt": b"keep"}

    def test_an_empty_output_folder_is_used(self, tmp_path):
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        (tmp_path / "out").mkdir()
        assert convert(source, tmp_path / "out", ConversionOptions()).written == 1
        assert is_dataset(tmp_path / "out")

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_an_interruption_leaves_no_output(self, tmp_path, monkeypatch, error):
        def interrupted(*_, **__):
            if list(tmp_path.glob(".out.converting/parts/00000.rejects.jsonl")):
                raise error
            pytest.fail("nothing was being written")

        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        monkeypatch.setattr(engine.rules, "checked", interrupted)
        with pytest.raises(error):
            convert(source, tmp_path / "out", ConversionOptions())
        assert not (tmp_path / "out").exists()
        monkeypatch.undo()
        assert convert(source, tmp_path / "out", ConversionOptions()).written == 1
        assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "out"}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b'{"nothing": "x"}\n', "no known format"),
            (b"", "no record"),
            (b"a,b\n1,2\n", "no known format"),
            (b'{"a":\n{"b":\n', "none of its first 2 records"),
            (b'{"conversations": []}\n"\xff"', "byte 23"),
        ],
    )
    def test_a_source_that_can_not_be_read(self, tmp_path, content, message):
        (tmp_path / "data.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            convert(tmp_path / "data.jsonl", tmp_path / "out", ConversionOptions())
        assert caught.value.where.endswith("data.jsonl")
        assert caught.value.fix
        assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]

    def test_an_unknown_format(self, tmp_path):
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        with pytest.raises(UserError, match="no format 'llavva'"):
            convert(source, tmp_path / "out", ConversionOptions(format="llavva"))

    def test_an_output_that_can_not_be_made(self, tmp_path):
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        with pytest.raises(UserError, match="Not a directory"):
            convert(source, source / "out", ConversionOptions())

    def test_a_data_set_is_not_converted_again(self, tmp_path):
        source = write_source(tmp_path / "data.jsonl", [text_record(1)])
        convert(source, tmp_path / "out", ConversionOptions())
        with pytest.raises(UserError, match="converted data set already"):
            convert(tmp_path / "out", tmp_path / "again", ConversionOptions())


class TestReadRecords:
    def test_media_stay_in_place(self, tmp_path):
        image = write_image(tmp_path / "in" / "a.png")
        uri = "data:;base64," + base64.b64encode(write_image(tmp_path / "b.png").read_bytes()).decode()
        source = write_source(tmp_path / "in" / "data.jsonl", [llava("a.png"), llava(uri), llava("c.png")])
        before = listing(tmp_path)
        rejects: list[Reject] = []
        store = tmp_path / "store"
        options = ConversionOptions()
        records = list(read_records(source, options, on_reject=rejects.append, media_store=store))
        assert records[0] == Record(
            id="llava:data.jsonl:0",
            messages=(
                Message("user", (Part("image", media=0), Part("text", text="\nWhat?"))),
                Message("assistant", (Part("text", text="A cat."),)),
            ),
            media=(Media("image", str(image), "", "image/png", 40, 30, frames=1, origin="a.png"),),
            references=(),
            tools=None,
            meta="{}",
            source=Source("llava", "data.jsonl", 0, "0.1.0"),
        )
        kept = Path(records[1].media[0].path)
        assert kept.is_relative_to(store)
        assert kept.read_bytes() == (tmp_path / "b.png").read_bytes()
        assert [(reject.ordinal, reject.reason) for reject in rejects] == [(2, "media_missing")]
        assert {name: data for name, data in listing(tmp_path).items() if not name.startswith("store/")} == before

    def test_it_gives_what_the_data_set_holds(self, tmp_path):
        write_image(tmp_path / "a.png")
        source = write_source(tmp_path / "data.jsonl", [llava("a.png"), text_record(1)])
        convert(source, tmp_path / "out", ConversionOptions())
        in_place = read_records(source, ConversionOptions(), on_reject=pytest.fail, media_store=tmp_path / "store")
        for ours, theirs in zip(in_place, read_dataset(tmp_path / "out"), strict=True):
            assert (ours.id, ours.messages, ours.meta, ours.source) == (
                theirs.id,
                theirs.messages,
                theirs.meta,
                theirs.source,
            )

    def test_evaluation_needs_no_answer(self, tmp_path):
        source = write_source(tmp_path / "data.jsonl", [llava(answer="", question="Why?")])
        options = ConversionOptions(evaluation=True)
        (record,) = read_records(source, options, on_reject=pytest.fail, media_store=tmp_path)
        assert [message.role for message in record.messages] == ["user"]


class TestReadDataset:
    @pytest.fixture
    def dataset(self, tmp_path):
        write_image(tmp_path / "a.png")
        source = write_source(tmp_path / "data.jsonl", [llava("a.png"), text_record("\u2028\x85")])
        convert(source, tmp_path / "out", ConversionOptions())
        return tmp_path / "out"

    def test_what_was_written_is_read(self, dataset):
        assert is_dataset(dataset)
        first, second = read_dataset(dataset, verify=True)
        assert Path(first.media[0].path).is_file()
        assert Path(first.media[0].path).is_absolute()
        assert second.messages[0].content[0].text == "\u2028\x85?"

    def test_what_is_no_data_set(self, tmp_path):
        assert not is_dataset(tmp_path)
        assert not is_dataset(tmp_path / "nowhere")
        with pytest.raises(UserError, match="no converted data set"):
            list(read_dataset(tmp_path))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "schema version 2"),
            (lambda text: text[:40], "manifest is damaged"),
            (lambda text: text.replace("shards", "parts"), "manifest is damaged"),
            (lambda text: text.replace('"records": 2', '"records": 3'), "2 records where the manifest says 3"),
        ],
    )
    def test_a_manifest_that_does_not_fit(self, dataset, change, message):
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
    def test_a_shard_that_was_changed(self, dataset, old, new, message):
        shard = dataset / "data-00000.jsonl"
        shard.write_text(shard.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match="not the one that was written"):
            list(read_dataset(dataset, verify=True))
        if message:
            with pytest.raises(UserError, match=message):
                list(read_dataset(dataset))

    def test_media_paths_are_real_ones(self, dataset, tmp_path):
        (tmp_path / "link").symlink_to(dataset)
        first, _ = read_dataset(tmp_path / "link")
        path = first.media[0].path
        assert path == os.path.realpath(path)
        assert Path(path).is_relative_to(dataset)

    def test_a_link_out_of_the_data_set_is_refused(self, dataset, tmp_path):
        (copy,) = (dataset / "media").glob("*/*.png")
        copy.unlink()
        copy.symlink_to(tmp_path / "a.png")
        with pytest.raises(UserError, match=r"data-00000\.jsonl:1: .* a link that leaves the data set"):
            list(read_dataset(dataset))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "x"]), "value": st.text(max_size=4) | JSON})
LINE = st.one_of(
    st.fixed_dictionaries({"conversations": st.lists(TURN, max_size=3) | JSON}, optional={"image": JSON}).map(
        json.dumps
    ),
    JSON.map(json.dumps),
    st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=6),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(LINE, min_size=1, max_size=6))
def test_read_is_written_plus_rejected(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("any")
    (folder / "data.jsonl").write_text("\n".join([json.dumps(text_record(1)), *written]), encoding="utf-8")
    report = convert(folder / "data.jsonl", folder / "out", ConversionOptions(format="llava", max_rejects=99))
    expected = 1 + sum(1 for line in written if line.strip(" \t"))
    assert report.source_records == expected <= report.read == report.written + report.rejected
    assert len(lines(folder / "out" / "rejects.jsonl")) == report.rejected
    assert len(list(read_dataset(folder / "out", verify=True))) == report.written
    assert sum(report.reasons.values()) == report.rejected
