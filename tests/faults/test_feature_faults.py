"""Image features under fault: kills and signals while they are computed, two runs at once, a full disk, bad media."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_runs import result
from forking import Forkery
from media_files import CLIP_WAYS, IMAGE_WAYS, make_data, media_of

RECIPE = """
model: {{path: tiny, device: cpu}}
data:
  train: {{path: {data}/train/data}}
  eval: {{path: {data}/eval/data}}
  image_size: 490
  media_timeout: 10
train:
  learning_rate: 1e-3
  max_steps: 6
  gradient_accumulation_steps: 2
  gradient_checkpointing: false
  dataloader_num_workers: 0
  save_strategy: no
  eval_steps: 6
output: {{dir: {output}}}
"""
CACHED = "data.cache_image_features=true"
IMAGES, CLIPS = 8, 3
PICTURES = IMAGES + CLIPS
"""The evaluation shows the same bytes as two rows of training."""
LONGEST_FILLING_SECONDS = 3.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows, each of which is due once in six steps."""
    folder = tmp_path_factory.mktemp("features")
    make_data(folder / "train", images=IMAGES, clips=CLIPS, texts=1)
    make_data(folder / "eval", images=1, clips=1)
    return folder


Write = Callable[..., str]


@pytest.fixture
def write(data: Path, tmp_path: Path) -> Write:
    def made(name: str = "run", output: Path | None = None) -> str:
        file = tmp_path / f"{name}.yaml"
        file.write_text(RECIPE.format(data=data, output=output or tmp_path / "runs" / name))
        return str(file)

    return made


@pytest.fixture(scope="module")
def live(forkery: Forkery, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures that nothing happened to."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data, output=folder / "run"))
    ended = forkery.run("train", str(folder / "recipe.yaml"))
    assert ended.code == 0, ended.said
    return folder / "run"


def files(folder: Path, suffix: str) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.name.endswith(suffix)]


def test_filling_killed_again_and_again_goes_on(
    forkery: Forkery, write: Write, live: Path, tmp_path: Path, soak: bool
) -> None:
    chance, kept, kills = random.Random(7), tmp_path / "runs" / "image-features", 0
    for attempt in range(100 if soak else 8):
        if attempt % 2:  # between writing a file and giving it its name
            strike = {"at": "syncing features", "count": chance.randint(1, 3), "signals": [signal.SIGKILL]}
            code = forkery.run("train", write(), CACHED, strike=strike).code
        else:
            running = forkery.start("train", write(), CACHED)
            time.sleep(chance.uniform(0, LONGEST_FILLING_SECONDS))
            os.kill(running.pid, signal.SIGKILL)
            code = running.wait().code
        assert code in (0, -signal.SIGKILL)
        kills += code == -signal.SIGKILL
        if (tmp_path / "runs" / "run" / "metrics.jsonl").exists():
            break  # it was killed while training, or was too quick
    assert kills > 2
    before = {path: path.read_bytes() for path in files(kept, ".safetensors")}
    assert before
    shutil.rmtree(tmp_path / "runs" / "run", ignore_errors=True)
    ended = forkery.run("train", write(), CACHED)
    assert ended.code == 0, ended.said
    assert f"{len(before)} are there, {PICTURES - len(before)} are computed now" in ended.said
    assert result(tmp_path / "runs" / "run") == result(live)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(files(kept, ".safetensors")) == PICTURES
    if len(before) < PICTURES:
        assert not files(kept, ".part"), "leftovers of killed processes"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_features_and_no_run(
    forkery: Forkery, write: Write, tmp_path: Path, number: signal.Signals
) -> None:
    ended = forkery.run("train", write(), CACHED, strike={"at": "syncing features", "count": 4, "signals": [number]})
    assert ended.code == 128 + number, ended.said
    assert "Traceback" not in ended.said
    assert not (tmp_path / "runs" / "run").exists()
    kept = tmp_path / "runs" / "image-features"
    assert len(files(kept, ".safetensors")) in (3, 4)
    assert not files(kept, ".part")


def test_two_runs_that_fill_one_folder(forkery: Forkery, write: Write, live: Path, tmp_path: Path) -> None:
    both = [forkery.start("train", write(name), CACHED) for name in ("one", "two")]
    ended = [running.wait() for running in both]
    assert [run.code for run in ended] == [0, 0], [run.said for run in ended]
    runs = [tmp_path / "runs" / name for name in ("one", "two")]
    assert result(runs[0]) == result(runs[1]) == result(live)
    counts = [json.loads((run / "run.json").read_text())["image_features"]["computed"] for run in runs]
    assert sorted(counts) == [0, PICTURES]
    assert len(files(tmp_path / "runs" / "image-features", ".safetensors")) == PICTURES


def skipped(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]


def test_media_that_fail_are_skipped_as_without_features(
    forkery: Forkery, data: Path, tmp_path: Path, soak: bool
) -> None:
    """Files break after rows were planned: at once for the run on pictures, before filling for the other."""
    shutil.copytree(data, tmp_path / "data")
    media = media_of(tmp_path / "data" / "train" / "data")
    images = [row for row in media if media[row].suffix != ".mp4"]
    clips = [row for row in media if media[row].suffix == ".mp4"]
    ways = [(IMAGE_WAYS[n : n + 6], CLIP_WAYS[n : n + 2]) for n in range(0, len(IMAGE_WAYS) if soak else 6, 6)]
    for number, (image_ways, clip_ways) in enumerate(ways):
        struck = [*zip(image_ways, images, strict=False), *zip(clip_ways, clips, strict=False)]
        runs = {}
        for name, keys in (
            ("live", ()),
            ("cached", (CACHED,)),
            ("workers", (CACHED, "train.dataloader_num_workers=2")),
        ):
            shutil.rmtree(tmp_path / "data")
            shutil.copytree(data, tmp_path / "data")
            runs[name] = tmp_path / f"{number}-{name}" / "run"
            recipe = tmp_path / f"{number}-{name}.yaml"
            recipe.write_text(RECIPE.format(data=tmp_path / "data", output=runs[name]))
            breaking = {"at": "reading rows", "break": [(way, str(media[row])) for way, row in struck]}
            ended = forkery.run("train", str(recipe), "data.on_bad_media=skip", *keys, strike=breaking)
            assert ended.code == 0, ended.said
        entries = skipped(runs["live"])
        assert {entry["id"] for entry in entries} <= {row for _, row in struck}
        assert len(entries) == len(struck)
        assert skipped(runs["cached"]) == skipped(runs["workers"]) == entries
        assert result(runs["cached"]) == result(runs["workers"]) == result(runs["live"])


SMALL_BYTES = 4 * 2**20


def test_a_disk_that_is_or_runs_full(
    mount_disk: Callable[[int], tuple[Forkery, Path, Path]], write: Write, tmp_path: Path
) -> None:
    forkery, disk, seen = mount_disk(SMALL_BYTES)
    cached = f"data.cache_image_features={disk}/features"

    strike = {"at": "reading rows", "fill": str(disk), "leave": 100_000}
    ended = forkery.run("train", write(), cached, strike=strike)
    assert ended.code == 2, ended.said
    assert "what is still to be written of the image features needs" in ended.said
    assert "free on its disk" in ended.said
    assert not (tmp_path / "runs" / "run").exists()
    assert not files(seen / "features", ".safetensors")
    (seen / "filler").unlink()

    strike = {"at": "storing features", "count": 4, "fill": str(disk), "leave": 6_000}
    ended = forkery.run("train", write(), cached, strike=strike)
    assert ended.code == 2, ended.said
    assert "the disk ran full while the folder of image features was written" in ended.said
    assert "Traceback" not in ended.said
    assert len(files(seen / "features", ".safetensors")) == 3
    assert not files(seen / "features", ".part")
    (seen / "filler").unlink()

    ended = forkery.run("train", write(), cached)
    assert ended.code == 0, ended.said
    assert f"3 are there, {PICTURES - 3} are computed now" in ended.said
