"""Pictures and clips that break while a run trains on them, and decoders that hang or crash, under both policies."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import pytest
from fault_runs import learnt, result
from forking import Ended, Forkery
from media_files import (
    CLIP_WAYS,
    IMAGE_WAYS,
    RESUMABLE_CLIP_WAYS,
    RESUMABLE_IMAGE_WAYS,
    UNPLANNED_CLIP_WAYS,
    break_file,
    make_data,
    media_of,
)
from run_values import metrics
from witness import count_updates, rows_by_step, seconds

from aria_finetune.checkpoint.retention import checkpoint_path, newest_sealed

RECIPE = """
model: {{path: tiny, device: cpu, experts: fp32}}
data:
  train: {{path: {data}/train/data}}
  eval: {{path: {data}/eval/data}}
  image_size: 490
  media_timeout: 10
lora: {{dropout: 0.1}}
train:
  learning_rate: 1e-3
  max_steps: {steps}
  gradient_accumulation_steps: 2
  gradient_checkpointing: false
  dataloader_num_workers: 0
  save_steps: 2
  eval_steps: 6
  seed: 3  # rows come in an order that has all the tests need
output: {{dir: {output}}}
"""
STRUCK = 3
"""The micro-batch at which files break."""
READ_AHEAD = 10
"""So many rows are read by then at most: those of the steps begun, and two batches ahead for each of two workers."""


@dataclass(frozen=True)
class Sizes:
    """Rows of the data set, steps of a run over more than one epoch, and how many files break."""

    images: int
    clips: int
    steps: int
    bad_images: int
    bad_clips: int


SMALL, FULL = Sizes(10, 6, 11, 3, 2), Sizes(40, 14, 40, 20, 10)


@dataclass(frozen=True)
class Setting:
    """Data that are sound, and a run over them that nothing happened to."""

    forkery: Forkery
    sizes: Sizes
    data: Path
    run: Path
    planned: dict[int, list[str]]
    """Ids of the rows of each step, in order."""

    @property
    def due(self) -> list[str]:
        """Ids of all rows in the order in which the run comes to them, those of the next epoch behind."""
        return [row for rows in self.planned.values() for row in rows]

    def choose(self, images: int, clips: int) -> list[str]:
        """Rows to break, in the order of the first time they are due: both of one step, and others."""
        media = media_of(self.data / "train" / "data")
        later = [row for row in self.due[READ_AHEAD : len(set(self.due))] if row in media]
        together = next(rows for step, rows in self.planned.items() if set(rows) <= set(later))
        wanted = {".mp4": clips, "": images}
        chosen = []
        for row in dict.fromkeys([*together, *later]):
            kind = ".mp4" if media[row].suffix == ".mp4" else ""
            if wanted[kind] > 0:
                wanted[kind] -= 1
                chosen.append(row)
        assert set(wanted.values()) == {0}, wanted
        return sorted(chosen, key=self.due.index)


@pytest.fixture(scope="module")
def setting(forkery: Forkery, tmp_path_factory: pytest.TempPathFactory, soak: bool) -> Setting:
    folder = tmp_path_factory.mktemp("media")
    sizes = FULL if soak else SMALL
    make_data(folder / "data" / "train", images=sizes.images, clips=sizes.clips, texts=2)
    make_data(folder / "data" / "eval", images=2, clips=1)
    recipe = write(folder, folder / "data", sizes.steps)
    ended = forkery.run("train", recipe, strike={"record": str(folder / "record.jsonl")})
    assert ended.code == 0, ended.said
    planned = rows_by_step(folder / "record.jsonl")
    assert [len(rows) for rows in planned.values()] == [2] * sizes.steps
    return Setting(forkery, sizes, folder / "data", folder / "runs" / "run", planned)


def write(folder: Path, data: Path, steps: int) -> str:
    """Write a recipe whose run lies in `folder/runs/run`."""
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data, steps=steps, output=folder / "runs" / "run"))
    return str(folder / "recipe.yaml")


class Broken:
    """A run whose files break under it: a copy of the data, and what breaks in which way."""

    def __init__(self, setting: Setting, folder: Path, *, images: int, clips: int) -> None:
        shutil.copytree(setting.data, folder / "data")
        self.run = folder / "runs" / "run"
        self.record = folder / "record.jsonl"
        self.rows = setting.choose(images, clips)
        self.media = media_of(folder / "data" / "train" / "data")
        self.evaluation = next(iter(media_of(folder / "data" / "eval" / "data").values()))
        self._setting = setting
        self._recipe = write(folder, folder / "data", setting.sizes.steps)

    def breaking(
        self, images: Sequence[str] = RESUMABLE_IMAGE_WAYS, clips: Sequence[str] = RESUMABLE_CLIP_WAYS
    ) -> list[tuple[str, str]]:
        """In which way each file breaks; the ways take turns."""
        turns = {False: cycle(images), True: cycle(clips)}
        return [(next(turns[self.media[row].suffix == ".mp4"]), str(self.media[row])) for row in self.rows]

    def train(self, *options: str, **strike: Any) -> Ended:
        """Start the run, or go on with it."""
        return self._setting.forkery.run("train", self._recipe, *options, strike={"record": str(self.record), **strike})

    def restore(self, row: str) -> None:
        """Put a file back as it was."""
        file = self.media[row]
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        sound = media_of(self._setting.data / "train" / "data")[row]
        shutil.copy(sound, file)

    def skipped(self, *, training: bool = True) -> list[tuple[int, str, str]]:
        """Step, row and file of each line of `skipped.jsonl`."""
        entries = [json.loads(line) for line in (self.run / "skipped.jsonl").read_text().splitlines()]
        return [(entry["step"], entry["id"], entry["media"]) for entry in entries if entry["training"] is training]

    def described(self) -> dict[str, Any]:
        """What `run.json` says."""
        described: dict[str, Any] = json.loads((self.run / "run.json").read_text())
        return described


def place(row: str) -> str:
    """A row's file and number, from its id."""
    return row.partition(":")[2]


def test_the_policy_fail_names_row_and_file_and_loses_nothing(setting: Setting, tmp_path: Path, soak: bool) -> None:
    images, clips = (setting.sizes.bad_images, setting.sizes.bad_clips) if soak else (1, 1)
    broken, start = Broken(setting, tmp_path, images=images, clips=clips), 0
    ended = broken.train(at="accumulation", count=STRUCK, **{"break": broken.breaking(clips=UNPLANNED_CLIP_WAYS)})
    for row in broken.rows:
        step = next(step for step, rows in setting.planned.items() if row in rows)
        assert ended.code == 2, ended.said
        assert f"error: {place(row)}: {broken.media[row]}" in ended.said
        assert "Traceback" not in ended.said
        assert broken.described()["status"] == "stopped"
        assert not (broken.run / "adapter").exists()
        assert count_updates(broken.record) == step - 1 - start
        start = (step - 1) // 2 * 2
        assert newest_sealed(broken.run) == (checkpoint_path(broken.run, start), [])
        broken.restore(row)
        broken.record.unlink(missing_ok=True)
        ended = broken.train("--resume")
    assert ended.code == 0, ended.said
    assert result(broken.run) == result(setting.run)


def test_under_the_policy_fail_a_clip_lost_between_two_sessions_is_named_before_training_goes_on(
    setting: Setting, tmp_path: Path
) -> None:
    broken = Broken(setting, tmp_path, images=0, clips=1)
    term = {"at": "accumulation", "count": STRUCK, "signals": [signal.SIGTERM]}
    assert broken.train(**term).code == 128 + signal.SIGTERM
    (row,) = broken.rows
    break_file(broken.media[row], "emptied")
    ended = broken.train("--resume")
    assert ended.code == 3, ended.said
    assert f"{place(row)}: media_unreadable" in ended.said
    assert broken.described()["status"] == "stopped"
    broken.restore(row)
    ended = broken.train("--resume")
    assert ended.code == 0, ended.said
    assert result(broken.run) == result(setting.run)


def test_the_policy_skip_leaves_out_these_rows_and_no_other(setting: Setting, tmp_path: Path) -> None:
    sizes, every_step = setting.sizes, ("train.save_steps=1", "train.save_total_limit=null")
    runs = {}
    for name in ("one process", "two workers", "stopped"):
        (tmp_path / name).mkdir()
        runs[name] = broken = Broken(setting, tmp_path / name, images=sizes.bad_images, clips=sizes.bad_clips)
        ways = () if name == "stopped" else (IMAGE_WAYS, CLIP_WAYS)
        files = [*broken.breaking(*ways), ("emptied", str(broken.evaluation))]
        breaking = {"at": "accumulation", "count": STRUCK, "break": files}
        skip, workers = "data.on_bad_media=skip", f"train.dataloader_num_workers={2 * (name == 'two workers')}"
        if name == "stopped":
            term = {"at": "evaluation", "count": 3, "signals": [signal.SIGTERM]}
            ended = broken.train(skip, workers, then=[term], **breaking)
            assert ended.code == 128 + signal.SIGTERM, ended.said
            ended = broken.train(skip, workers, "--resume")
        else:
            ended = broken.train(skip, workers, *every_step, **breaking)
        assert ended.code == 0, ended.said
        check_skipped(setting, broken)
    one = runs["one process"].run
    for broken in runs.values():
        assert result(broken.run) == result(one)
        assert broken.described()["seen"] == runs["one process"].described()["seen"]

    check_empty_steps(setting, runs["one process"])


def check_skipped(setting: Setting, broken: Broken) -> None:
    """Exactly the broken rows are left out, counted and named; all others come in their turn."""
    lost = set(broken.rows)
    expected = [
        (step, row, str(broken.media[row])) for step, rows in setting.planned.items() for row in rows if row in lost
    ]
    assert len(expected) > len(lost), "none is due twice"
    assert broken.skipped() == expected
    evaluated = [line["step"] for line in metrics(setting.run) if "eval_loss" in line]
    assert [(step, media) for step, _, media in broken.skipped(training=False)] == [
        (step, str(broken.evaluation)) for step in evaluated
    ]
    kept = {step: [row for row in rows if row not in lost] for step, rows in setting.planned.items()}
    assert rows_by_step(broken.record) == {step: rows for step, rows in kept.items() if rows}
    described = broken.described()
    assert sum(described["skipped"].values()) == len(expected)
    assert described["seen"]["rows"] == sum(map(len, kept.values()))


def check_empty_steps(setting: Setting, broken: Broken) -> None:
    """Steps that lost all of their rows, and no others, have learnt nothing, and have no loss."""
    empty = [step for step, rows in setting.planned.items() if set(rows) <= set(broken.rows)]
    assert empty
    steps = range(2, setting.sizes.steps + 1)
    assert [step for step in steps if learnt(broken.run, step - 1) == learnt(broken.run, step)] == empty
    trained = [line["step"] for line in metrics(broken.run) if "loss" in line]
    assert [step for step in steps if step not in trained] == empty


def test_a_lost_disk_ends_a_run_that_skips(setting: Setting, tmp_path: Path) -> None:
    broken = Broken(setting, tmp_path, images=0, clips=0)
    gone = [("deleted", str(file)) for file in broken.media.values()]
    keys = ("data.on_bad_media=skip", "train.max_steps=100", "train.save_steps=5")
    ended = broken.train(*keys, at="accumulation", count=STRUCK, **{"break": gone})
    assert ended.code == 3, ended.said
    assert "error: 33 rows one after the other could not be read, the last at rows.jsonl:" in ended.said
    assert len(broken.skipped()) == 33
    newest, skipped = newest_sealed(broken.run)
    assert newest is not None
    assert not skipped


@pytest.mark.parametrize("key", ["train.load_best_model_at_end=true", "train.early_stopping_patience=2"])
def test_an_evaluation_that_lost_all_of_its_rows_ends_the_run(
    setting: Setting, tmp_path: Path, key: str, soak: bool
) -> None:
    if "patience" in key and not soak:
        pytest.skip("the same as the other; only in the soak")
    broken = Broken(setting, tmp_path, images=0, clips=0)
    gone = [("deleted", str(file)) for file in media_of(tmp_path / "data" / "eval" / "data").values()]
    keys = ("data.on_bad_media=skip", "train.max_steps=4", "train.eval_steps=2", key)
    ended = broken.train(*keys, at="accumulation", count=STRUCK, **{"break": gone})
    assert ended.code == 3, ended.said
    assert "error: no row could be read in the evaluation after step 2" in ended.said
    assert "Traceback" not in ended.said


DECODER = """
import json, os, sys, time
import av
from PIL import JpegImagePlugin, PngImagePlugin

DEEDS = json.load(open(os.path.join(os.path.dirname(__file__), "deeds.json")))
if "aria_finetune.data.decoding_process" not in sys.orig_argv:
    DEEDS = {}  # planning looks into clips in another process, and finds them sound

def misbehave(path):
    if DEEDS.get(str(path)) == "sleep":
        time.sleep(1e6)
    if DEEDS.get(str(path)) == "crash":
        os.abort()

def changed(original):
    def reads(image):
        misbehave(image.fp.name)
        original(image)
    return reads

def opens(path, *arguments, original=av.open, **options):
    misbehave(path)
    return original(path, *arguments, **options)

for kind in (PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile):
    kind._open = changed(kind._open)
av.open = opens
"""
"""A `sitecustomize` module: through it Pillow and PyAV do in the decoding process what a hostile file makes them do."""
TIMEOUT, PATIENCE = 1, 9
SAYS = {
    "sleep": f"media_unreadable: decoding took longer than {TIMEOUT} s and was stopped",
    "crash": "media_unreadable: the decoder crashed (SIGABRT)",
}
SHORT = (f"data.media_timeout={TIMEOUT}", "train.max_steps=4")


def corrupt_decoder(folder: Path, deeds: dict[Path, str]) -> str:
    """Make the module that the decoding process imports, and say where it is."""
    folder.mkdir()
    (folder / "deeds.json").write_text(json.dumps({str(file): deed for file, deed in deeds.items()}))
    (folder / "sitecustomize.py").write_text(DECODER)
    return str(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_decoder_that_sleeps_or_crashes_costs_a_row_each(
    setting: Setting, tmp_path: Path, workers: int, soak: bool
) -> None:
    if workers and not soak:
        pytest.skip("the same as without workers; only in the soak")
    broken = Broken(setting, tmp_path, images=0, clips=0)
    by_kind = {broken.media[row].suffix == ".mp4": row for row in setting.due[2:8] if row in broken.media}
    broken.rows = sorted(by_kind.values(), key=setting.due.index)
    assert len(broken.rows) == 2, "a picture and a clip"
    deeds = dict(zip((broken.media[row] for row in broken.rows), ("sleep", "crash"), strict=True))
    keys = ("data.on_bad_media=skip", f"train.dataloader_num_workers={workers}", *SHORT)
    ended = broken.train(*keys, modules=corrupt_decoder(tmp_path / "modules", deeds))
    assert ended.code == 0, ended.said
    assert [row for _, row, _ in broken.skipped()] == broken.rows
    for file, deed in deeds.items():
        assert f"{file}: {SAYS[deed]}" in ended.said
    used = [row for rows in rows_by_step(broken.record).values() for row in rows]
    assert used == [row for row in setting.due[:8] if row not in broken.rows]
    assert max(later - sooner for sooner, later in pairwise(seconds(broken.record))) < TIMEOUT + PATIENCE


@pytest.mark.parametrize("deed", ["sleep", "crash"])
def test_a_decoder_that_sleeps_or_crashes_ends_a_run_that_fails(
    setting: Setting, tmp_path: Path, deed: str, soak: bool
) -> None:
    if deed == "crash" and not soak:
        pytest.skip("the same as sleep; only in the soak")
    broken = Broken(setting, tmp_path, images=0, clips=0)
    row = next(row for row in setting.due[4:8] if row in broken.media)
    modules = corrupt_decoder(tmp_path / "modules", {broken.media[row]: deed})
    ended = broken.train(*SHORT, modules=modules)
    assert time.monotonic() - seconds(broken.record)[-1] < TIMEOUT + PATIENCE
    assert ended.code == 2, ended.said
    assert f"error: {place(row)}: {broken.media[row]}: {SAYS[deed]}" in ended.said
    assert newest_sealed(broken.run) == (checkpoint_path(broken.run, 2), [])
