"""Clips are looked into in a process that can be killed when rows are planned, each of them once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.data.dataset import DataSource, as_prompts, load_rows
from aria_finetune.data.rows import Viewing, plan_row
from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.media.inspection import Inspector

HOSTILE = """
import os, time
import av

def hostile(path, *arguments, original=av.open, **options):
    if "sleep" in path:
        time.sleep(1e6)
    if "abort" in path:
        os.abort()
    return original(path, *arguments, **options)

av.open = hostile
"""


@pytest.fixture
def turn_hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on clips do in the process what their names say."""

    def turn() -> None:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(HOSTILE)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    return turn


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that the process was asked about."""
    names: list[str] = []
    ask = Inspector._ask

    def counted(self: Inspector, request: dict[str, str], content: bytes | None = None) -> object:
        names.append(Path(request["path"]).name)
        return ask(self, request, content)

    monkeypatch.setattr(Inspector, "_ask", counted)
    return names


@pytest.fixture
def load(letter_chat, tmp_path: Path):
    def loaded(source: Path, **options):
        viewing = Viewing(num_frames=2, timestamps=False)
        return load_rows([DataSource(source)], viewing, letter_chat, media_store=tmp_path / "store", **options)

    return loaded


def write_set(folder: Path, files: list[str]) -> Path:
    """A converted data set of a row for each of `files`, which are referred to by their own names."""
    rows = [
        {"id": str(number), "video": file, "conversations": [
            {"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "That."}]}
        for number, file in enumerate(files)
    ]  # fmt: skip
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert(source, folder / "set", ConversionOptions())
    shard = folder / "set" / "data-00000.jsonl"
    lines = [json.loads(line) for line in shard.read_text().splitlines()]
    for line, file in zip(lines, files, strict=True):
        shutil.copy(folder / file, folder / "set" / "media" / file)
        line["media"][0]["path"] = f"media/{file}"
    shard.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "set"


def test_a_clip_is_read_once_however_many_rows_show_it(load, make_video, tmp_path, asked):
    make_video("a.mp4", 5)
    make_video("b.mp4", 7)
    data = write_set(tmp_path, ["a.mp4", "b.mp4", "a.mp4", "a.mp4", "b.mp4"])
    asked.clear()
    rows = load(data)
    assert sorted(asked) == ["a.mp4", "b.mp4"]
    assert [len(plan.sights) for plan in rows.plans] == [2] * 5


def test_the_same_rows_as_without_a_process(load, make_video, tmp_path, letter_chat):
    make_video("a.mp4", 12, milliseconds=[0, 40, 900, 1000, 1100, 1500, 2000, 2100, 2200, 3000, 3500, 4000])
    rows = load(write_set(tmp_path, ["a.mp4"]))
    here = plan_row(rows.plans[0].record, Viewing(num_frames=2, timestamps=False), letter_chat)
    assert rows.plans == [here]


@pytest.mark.parametrize(("word", "told"), [("sleep", "longer than 1 s"), ("abort", "crashed (SIGABRT)")])
def test_a_hostile_clip_is_a_rejected_row(load, make_video, tmp_path, turn_hostile, word, told, asked):
    make_video("sound.mp4", 5)
    make_video(f"{word}.mp4", 5)
    data = write_set(tmp_path, ["sound.mp4", f"{word}.mp4", "sound.mp4", f"{word}.mp4"])
    asked.clear()
    turn_hostile()
    with closing(Inspector(1.0)) as inspector:
        rows = load(data, max_rejects=2, inspector=inspector)
    assert len(rows.plans) == 2
    assert [reject.reason for reject in rows.rejects] == ["media_unreadable"] * 2
    assert told in rows.rejects[0].detail
    assert sorted(asked) == sorted(["sound.mp4", f"{word}.mp4"]), "waited for once"
    with closing(Inspector(1.0)) as inspector, pytest.raises(TooManyRejects, match="media_unreadable"):
        load(data, inspector=inspector)


@pytest.mark.parametrize("raw", [True, False])
def test_who_looks_into_media_is_shared(load, make_video, tmp_path, asked, turn_hostile, raw):
    """Between sources, whether converted or raw: a clip of both is read once, and one that hangs is waited for as long as was said."""
    make_video("a.mp4", 5)
    make_video("sleep.mp4", 5)
    data = write_set(tmp_path, ["a.mp4", "sleep.mp4"])
    source = tmp_path / "rows.jsonl" if raw else data
    asked.clear()
    turn_hostile()
    with closing(Inspector(1.0)) as inspector:
        first, second = (load(source, max_rejects=1, inspector=inspector) for _ in range(2))
    assert sorted(asked) == ["a.mp4", "sleep.mp4"]
    for rows in (first, second):
        assert len(rows.plans) == 1
        assert "longer than 1 s" in rows.rejects[0].detail


def test_media_that_were_not_measured_are_measured_in_the_process_too(load, make_video, tmp_path, turn_hostile):
    make_video("sound.mp4", 5)
    data = write_set(tmp_path, ["sound.mp4"])
    shard = data / "data-00000.jsonl"
    (data / "media" / "sound.mp4").rename(data / "media" / "abort.mp4")
    line = json.loads(shard.read_text())
    line["media"][0] |= {"path": "media/abort.mp4", "width": 0, "height": 0}
    shard.write_text(json.dumps(line) + "\n")
    turn_hostile()
    with pytest.raises(UserError, match=r"crashed \(SIGABRT\)"):
        load(data)


def test_prompts_are_planned_with_it_too(load, make_video, tmp_path, letter_chat, asked):
    make_video("a.mp4", 5)
    rows = load(write_set(tmp_path, ["a.mp4", "a.mp4"]))
    asked.clear()
    prompts = as_prompts(rows, Viewing(num_frames=2), letter_chat)
    assert asked == ["a.mp4"]
    assert len(prompts.plans) == 2
