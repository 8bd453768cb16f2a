"""The whole step in every way, and the goals: their output, and that they notice what fails. Nothing here looks at speed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_runs import Load, result_of
from safetensors.torch import save_file

from aria_finetune.planner.architecture import Architecture
from aria_finetune.planner.work import row_work


def test_images_live_and_kept_come_to_the_same_step(load: Load) -> None:
    flags = ("--scale", "small", "--layers", "1", "--tokens", "192", "--images", "1", "--tile", "490")
    found = result_of("whole_step.py", *flags, "--ways", "stock", "cached", "--repeats", "1", "--steps", "1", "--json")
    ways = found["ways"]
    assert list(ways) == ["stock", "ours", "cached"], "ours is always measured"
    assert (found["tokens"], found["labels"], found["failed"], found["ways_agree"]) == (192, 32, {}, True)
    assert ways["ours"]["losses"] == ways["cached"]["losses"]
    assert len(ways["ours"]["losses"]) == 2
    assert ways["stock"]["losses"] == pytest.approx(ways["ours"]["losses"], rel=0.01)
    assert found["gradient_relative_difference"]["cached"] == 0 < found["gradient_relative_difference"]["stock"] < 0.1
    assert found["against"]["stock"]["speedup"] == pytest.approx(
        ways["stock"]["seconds_per_step"] / ways["ours"]["seconds_per_step"]
    )
    assert ways["ours"]["peak_gib"] >= ways["ours"]["model_gib"] > 0
    config = load("random_aria").aria_config("small", 1, images=True)
    due = row_work(Architecture.from_config(config.to_dict()), 192, 32, {490: 1}).total
    assert ways["ours"]["teraflops"] * ways["ours"]["seconds_per_step"] == pytest.approx(due / 1e12)
    assert ways["cached"]["teraflops"] * ways["cached"]["seconds_per_step"] < due / 1e12, "the tower does not run"


def test_the_goals_run_on_a_cpu() -> None:
    found = result_of("goals.py", "2k", "--device", "cpu", "--scale", "small", "--layers", "1")
    (row,) = (row for row in found["goals"] if row["goal"].endswith("bf16 experts at 2k"))
    assert row["figure"] > 0
    assert row["met"] == "no GPU"
    assert {other["met"] for other in found["goals"] if other is not row} == {"not run"}


def runs_of(report: ModuleType, folder: Path, off: dict[str, float], **result: Any) -> dict[str, list[Path]]:
    """Results as processes leave them, a step of 2 s in each way and of 1 s in ours, with gradients off by some share."""
    runs = {}
    for way, share in off.items():
        place = folder / way
        place.mkdir()
        seconds = [1.0 if way == "ours" else 2.0]
        described = {"device": "cuda", "device_name": "a GPU", "scale": "full", "layers": 1, "tokens": 8, "labels": 4}
        described |= {"images": 0, "tile": 980, "steps": 1, "seed": 0, "threads": 1, "phases": None, "losses": [1.0]}
        described |= {"experts_implementation": "", "attention_implementation": "", "operations": 4e14}
        measured = {"seconds": seconds, "processor_seconds": seconds, "built_bytes": 1, "peak_bytes": 2}
        (place / report.RESULT_FILE).write_text(json.dumps({**described, **measured, **result}))
        save_file({"a": torch.ones(4) * (1 + share)}, place / report.EVIDENCE_FILE)
        runs[way] = [place]
    return runs


def test_use_of_the_device_is_operations_over_what_it_could_do(load: Load, tmp_path: Path) -> None:
    whole, report = load("whole_step"), load("report")
    summary = whole.summarise(runs_of(report, tmp_path, {"stock": 0.0, "ours": 0.0}), teraflops=800.0)
    assert summary["ways"]["ours"]["use_of_device"] == pytest.approx(0.5)
    assert summary["ways"]["stock"]["use_of_device"] == pytest.approx(0.25)
    assert summary["against"]["stock"]["speedup"] == 2.0
    assert summary["ways_agree"] is True


@pytest.mark.parametrize("off", [0.1, float("nan")])
def test_other_gradients_are_told(load: Load, tmp_path: Path, off: float) -> None:
    whole, report = load("whole_step"), load("report")
    summary = whole.summarise(runs_of(report, tmp_path, {"stock": off, "eager": 0.0, "ours": 0.0}), 800.0)
    assert summary["ways_agree"] is False
    assert "DO NOT COMPUTE THE SAME" in whole.table({**summary, "failed": {}})


def test_a_way_that_fails_is_left_out(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load("whole_step")

    def fails(script: str, job: dict[str, Any], allocator: dict[str, str], folder: Path) -> Path:
        assert script == "one_whole_step.py"
        if job["path"] == "eager":
            raise SystemExit("eager: the process ended with exit code 1")
        return folder

    monkeypatch.setattr(whole, "run_path", fails)
    arguments = whole.parse(["--ways", "eager", "stock", "--repeats", "2"])
    runs, failed = whole.run_all(arguments, {}, tmp_path)
    assert {way: len(folders) for way, folders in runs.items()} == {"stock": 2, "ours": 2}
    assert failed == {"eager": "eager: the process ended with exit code 1"}


def test_goals_are_met_from_their_bound_on(load: Load) -> None:
    goals = load("goals")
    ways = {"ours": {"use_of_device": 0.4}}
    at_8k = {"against": {"stock": {"speedup": 1.49, "memory_ratio": 0.7}}, "ways": ways}
    rows = goals.judge({"8k": at_8k, "images": {"against": {"cached": {"speedup": float("nan")}}}}, ["32k"], "cuda")
    assert [row["met"] for row in rows] == [
        "no", "failed", "not run", "failed", "failed", "yes", "yes", "no", "not run", "not run",
    ]  # fmt: skip
    assert rows[0]["figure"] == 1.49
    assert "1.49x  no" in goals.table(rows)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tokens", "256", "--images", "1"], "--tokens must be more than the 256 of images"),
        (["--ways", "cached"], "--ways cached needs --images"),
        (["--labels", "0"], "--labels must be above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    load: Load, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load("whole_step").parse(words)
    assert says in capsys.readouterr().err
