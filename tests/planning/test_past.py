"""Which earlier run is held against its plan."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aria_finetune.planning.past import last_run


def write(folder: Path, age: int = 0, **changes: Any) -> None:
    folder.mkdir(parents=True)
    described: dict[str, Any] = {
        "status": "finished",
        "device": "cpu",
        "training_seconds": 50.0,
        "plan": {"peak_gib": 11.0, "seconds": 40.0, "parameters": 25},
        "measured": {"peak_gib": 10.0, "flops": 1e12},
    }
    (folder / "run.json").write_text(json.dumps(described | changes))
    os.utime(folder / "run.json", (1_000_000 - age, 1_000_000 - age))


def test_the_run_itself_goes_first_then_the_newest_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "old", age=100)
    write(tmp_path / "new")
    found = last_run(tmp_path / "next", parameters=25, device="cpu")
    assert found is not None
    assert found.folder == tmp_path / "new"
    assert found.memory_error == pytest.approx(0.1)
    assert found.flops_per_second == 2e10
    itself = last_run(tmp_path / "old", parameters=25, device="cpu")
    assert itself is not None
    assert itself.folder == tmp_path / "old"


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "stopped"},
        {"plan": {"peak_gib": 11.0, "parameters": 26}},
        {"device": "NVIDIA H100"},
        {"plan": None},
        {"measured": {"peak_gib": 0.0, "flops": 1.0}},
        {"measured": {"peak_gib": "much"}},
        {"training_seconds": 0},
    ],
)
def test_others_are_passed_over(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path / "one", **changes)
    assert last_run(tmp_path / "next", parameters=25, device="cpu") is None


def test_what_is_no_description(tmp_path: Path) -> None:
    for name, text in (("broken", "{"), ("list", "[]"), ("bytes", "\ud800")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert last_run(tmp_path / "next", parameters=25, device="cpu") is None
    assert last_run(tmp_path / "nowhere" / "next", parameters=25, device="cpu") is None
