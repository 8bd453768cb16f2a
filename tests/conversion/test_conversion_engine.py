"""Every candidate of a record comes out as a record or as a reject with its reason."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from aria_finetune import __version__
from aria_finetune.conversion import ConversionOptions, Reject, convert, read_dataset, read_records
from aria_finetune.conversion import engine as engine_module
from aria_finetune.conversion.engine import Accepted, FileConverter, Outcome
from aria_finetune.conversion.media_store import InPlaceStore
from aria_finetune.conversion.plan import find_files
from aria_finetune.data_formats import Media, Message, Part, Record, RecordError, Source, registry
from aria_finetune.data_formats.format import Context, Format
from aria_finetune.errors import UserError

ANY_REJECTS = ConversionOptions(max_rejects=1000)


def outcomes(source: Path, form: Format | None = None, **options: object) -> list[list[Outcome]]:
    chosen = ConversionOptions(**options)  # type: ignore[arg-type]
    found, (file,) = find_files(source, chosen)
    with FileConverter(file, form or found, chosen, InPlaceStore(source.parent / "store")) as converter:
        return list(converter.outcomes())


def a_format(convert_one: object, **more: object) -> Format:
    return Format("qa", "", "", {}, (), frozenset(), lambda _: True, convert_one, **more)  # type: ignore[arg-type]


class TestCandidates:
    def test_each_has_its_own_number(self, tmp_path: Path) -> None:
        chat = registry.get("llava")

        def questions(record: dict[str, list[object]], _: Context) -> Iterator[object]:
            for question in record["questions"]:
                if question is None:
                    yield RecordError("empty_answer", "none")
                else:
                    yield from chat.convert(text_record(question), _)  # type: ignore[arg-type]
            if record.get("broken"):
                raise RecordError("bad_schema", "cut")

        records = [
            {"questions": [1, None, 3]},
            {"questions": [4]},
            {"questions": [5], "broken": True},
            {"questions": []},
        ]
        source = write_source(tmp_path / "q.jsonl", records)
        found = outcomes(source, a_format(questions), format="llava")
        told = [[(o.record.id if isinstance(o, Accepted) else (o.id, o.sub, o.reason)) for o in each] for each in found]
        assert told == [
            ["qa:q.jsonl:0.0", ("qa:q.jsonl:0.1", 1, "empty_answer"), "qa:q.jsonl:0.2"],
            ["qa:q.jsonl:1"],
            ["qa:q.jsonl:2.0", ("qa:q.jsonl:2.1", 1, "bad_schema")],
            [("qa:q.jsonl:3", None, "bad_schema")],
        ]
        assert found[3][0].detail == "the record holds no conversation"  # type: ignore[union-attr]

    def test_repairs_are_told_once_each(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png")
        source = write_source(tmp_path / "data.jsonl", [llava("a.png", question="What?", answer="<|im_end|>"), llava()])
        ((accepted,), (reject,)) = outcomes(source)
        assert isinstance(accepted, Accepted)
        assert accepted.repairs == ("placeholder_added", "control_token_in_text")
        assert isinstance(reject, Reject)

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        source = tmp_path / os.fsdecode(b"d\xe4ta.jsonl")
        source.write_text(json.dumps(text_record(1)) + "\n" + json.dumps(llava(answer="")) + "\n")
        ((accepted,), (reject,)) = outcomes(source)
        assert isinstance(accepted, Accepted)
        assert accepted.record.source.file == "d\\udce4ta.jsonl"
        assert reject.id == "llava:d\\udce4ta.jsonl:1"  # type: ignore[union-attr]


class TestBeside:
    """What a record names beside its media: subtitles, transcripts."""

    @pytest.fixture
    def asking(self) -> Format:
        def convert_one(record: dict[str, str], context: Context) -> Iterator[object]:
            text = context.beside(record["file"]).decode()
            yield from registry.get("llava").convert(text_record(text), context)

        return a_format(convert_one)

    def test_it_is_found_as_media_are(self, tmp_path: Path, asking: Format) -> None:
        (tmp_path / "root" / "texts").mkdir(parents=True)
        (tmp_path / "root" / "texts" / "a.srt").write_text("Hello")
        (tmp_path / "secret.srt").write_text("Hidden")
        names = ["texts/a.srt", "../secret.srt", "texts/b.srt", "https://host/a.srt", "texts"]
        source = write_source(tmp_path / "in" / "data.jsonl", [{"file": name} for name in names])
        found = outcomes(source, asking, format="llava", media_roots=(tmp_path / "root",))
        (accepted,), *rejected = found
        assert isinstance(accepted, Accepted)
        assert accepted.record.messages[0].content[0].text == "Hello?"
        reasons = [reject.reason for (reject,) in rejected]  # type: ignore[union-attr]
        assert reasons == ["media_unsafe_path", "media_missing", "media_remote", "media_unreadable"]

    def test_a_large_file_is_not_read(self, tmp_path: Path, asking: Format, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_module, "BESIDE_BYTES", 3)
        (tmp_path / "a.srt").write_text("four")
        source = write_source(tmp_path / "data.jsonl", [{"file": "a.srt"}])
        ((reject,),) = outcomes(source, asking, format="llava")
        assert reject.reason == "media_too_large"  # type: ignore[union-attr]


def test_every_bad_record_has_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_image(folder / "a.png")
    write_image(tmp_path / "outside.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:20])
    (folder / "none.png").write_bytes(b"")
    write_image(folder / "large.png", size=(200, 200))
    write_image(folder / "small.png", size=(40, 2))
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
    source = write_source(folder / "data.jsonl", [record for record, _ in cases])
    with source.open("a") as stream:
        stream.write('{"conversations": [\n')
    report = convert(source, tmp_path / "out", ConversionOptions(max_rejects=99, max_pixels=20_000))
    expected = [reason for _, reason in cases if reason] + ["bad_json"]
    assert [line["reason"] for line in lines(tmp_path / "out" / "rejects.jsonl")] == expected
    assert report.reasons == Counter(expected)
    assert (report.read, report.written) == (len(cases) + 1, 1)


class TestVerification:
    @pytest.mark.parametrize(
        ("verify", "kept"),
        [("none", [0, 1, 2, 3, 4]), ("stat", [0, 1, 2]), ("header", [0, 1]), ("decode", [0])],
    )
    def test_how_far_a_file_is_looked_into(self, tmp_path: Path, verify: str, kept: list[int]) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
        whole = tmp_path / "whole.png"
        Image.fromarray(pixels).save(whole)
        (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:50_000])
        (tmp_path / "text.png").write_text("not an image")
        (tmp_path / "none.png").write_bytes(b"")
        files = ["whole.png", "cut.png", "text.png", "none.png", "missing.png"]
        source = write_source(tmp_path / "data.jsonl", [llava(name) for name in files])
        convert(source, tmp_path / "out", ConversionOptions(verify=verify, max_rejects=9))  # type: ignore[arg-type]
        assert [record["source"]["ordinal"] for record in written(tmp_path / "out")] == kept

    def test_without_a_look_every_record_is_written_and_nothing_copied(self, tmp_path: Path) -> None:
        image = write_image(tmp_path / "in" / "a.png")
        data = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
        references = ["a.png", "../a.png", "missing.png", "https://host/a.png", data, "data:;base64,!"]
        source = write_source(tmp_path / "in" / "data.jsonl", [llava(reference) for reference in references])
        report = convert(source, tmp_path / "out", ConversionOptions(verify="none"))
        assert (report.written, report.rejected) == (6, 0)
        media = [record["media"][0] for record in written(tmp_path / "out")]
        kept = f"media/{sha256(image)[:2]}/{sha256(image)}.png"
        assert [medium["path"] for medium in media] == [
            str(image), None, str(tmp_path / "in" / "missing.png"), None, kept, None
        ]  # fmt: skip
        assert [medium["sha256"] for medium in media] == ["", "", "", "", sha256(image), ""]
        assert {(medium["width"], medium["height"], medium["frames"]) for medium in media} == {(0, 0, None)}
        assert [name for name in listing(tmp_path / "out") if name.startswith("media/")] == [kept]

    @pytest.mark.parametrize("verify", ["none", "stat", "header", "decode"])
    def test_a_sound_video_passes(self, tmp_path: Path, verify: str) -> None:
        write_video(tmp_path / "v.mp4")
        source = write_source(tmp_path / "data.jsonl", [llava(question="<video>What?", video="v.mp4")])
        convert(source, tmp_path / "out", ConversionOptions(verify=verify))  # type: ignore[arg-type]
        (record,) = read_dataset(tmp_path / "out")
        (medium,) = record.media
        assert (medium.width, medium.height, medium.frames) == (64, 48, 5)
        assert (medium.path or "").endswith(".mp4")


class TestReadRecords:
    def test_media_stay_in_place(self, tmp_path: Path) -> None:
        image = write_image(tmp_path / "in" / "a.png")
        uri = "data:;base64," + base64.b64encode(write_image(tmp_path / "b.png").read_bytes()).decode()
        source = write_source(tmp_path / "in" / "data.jsonl", [llava("a.png"), llava(uri), llava("c.png")])
        before = listing(tmp_path)
        rejects: list[Reject] = []
        store = tmp_path / "store"
        records = list(read_records(source, ConversionOptions(), on_reject=rejects.append, media_store=store))
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
            source=Source("llava", "data.jsonl", 0, __version__),
        )
        kept = Path(records[1].media[0].path or "")
        assert kept.is_relative_to(store)
        assert kept.read_bytes() == (tmp_path / "b.png").read_bytes()
        assert [(reject.ordinal, reject.reason) for reject in rejects] == [(2, "media_missing")]
        assert {name: data for name, data in listing(tmp_path).items() if not name.startswith("store/")} == before

    def test_it_gives_what_the_data_set_holds(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png")
        source = write_source(tmp_path / "data.jsonl", [llava("a.png"), text_record(1)])
        convert(source, tmp_path / "out", ConversionOptions())
        in_place = read_records(source, ConversionOptions(), on_reject=pytest.fail, media_store=tmp_path / "store")
        for ours, theirs in zip(in_place, read_dataset(tmp_path / "out"), strict=True):
            of_both = [(record.id, record.messages, record.meta, record.source) for record in (ours, theirs)]
            assert of_both[0] == of_both[1]

    def test_several_files(self, tmp_path: Path) -> None:
        for part in range(3):
            write_source(tmp_path / "in" / f"part-{part}.jsonl", [text_record(part), text_record(9)])
        records = read_records(tmp_path / "in", ConversionOptions(), on_reject=pytest.fail, media_store=tmp_path)
        assert [record.id for record in records] == [
            f"llava:part-{part}.jsonl:{n}" for part in range(3) for n in (0, 1)
        ]

    def test_evaluation_needs_no_answer(self, tmp_path: Path) -> None:
        source = write_source(tmp_path / "data.jsonl", [llava(answer="", question="Why?")])
        options = ConversionOptions(evaluation=True)
        (record,) = read_records(source, options, on_reject=pytest.fail, media_store=tmp_path)
        assert [message.role for message in record.messages] == ["user"]

    def test_what_can_not_be_read_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no such file or folder") as caught:
            list(read_records(tmp_path / "x", ConversionOptions(), on_reject=pytest.fail, media_store=tmp_path))
        assert caught.value.where == str(tmp_path / "x")
        assert names(tmp_path) == set()


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


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written_lines=st.lists(LINE, min_size=1, max_size=6))
def test_read_is_written_plus_rejected(tmp_path_factory: pytest.TempPathFactory, written_lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    text = "\n".join([json.dumps(text_record(1)), *written_lines])
    (folder / "data.jsonl").write_text(text, encoding="utf-8", newline="\n")
    report = convert(folder / "data.jsonl", folder / "out", ConversionOptions(format="llava", max_rejects=99))
    assert report.source_records == 1 + sum(1 for line in written_lines if line.strip(" \t\r"))
    assert report.read == report.written + report.rejected >= report.source_records
    assert len(lines(folder / "out" / "rejects.jsonl")) == report.rejected
    assert len(list(read_dataset(folder / "out", verify=True))) == report.written
    assert sum(report.reasons.values()) == report.rejected
