"""The benchmark of the loss runs and tells what it measured. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json

import pytest
from benchmark_runs import Load, run


def test_the_last_line_is_the_result() -> None:
    sizes = ("--tokens", "21", "--shares", "0.25", "--vocabulary", "5000")
    *table, last = run("head.py", *sizes, "--repeats", "1", "--steps", "2", "--json")
    result = json.loads(last)
    assert len(table) == 2 + 1
    (case,) = result["cases"]
    assert (case["tokens"], case["labels"]) == (21, 5)
    assert result["ways_agree"]
    assert 0 < case["gradients_differ_by"] < 0.02
    assert case["ours"]["loss"] == pytest.approx(case["trl"]["loss"], rel=1e-3)
    assert case["times_as_fast"] == case["trl"]["cpu_seconds"] / case["ours"]["cpu_seconds"]
    peaks = case["ours"]["peak_mib"], case["trl"]["peak_mib"]
    assert case["memory_ratio"] == (peaks[0] / peaks[1] if all(peaks) else None)


@pytest.mark.parametrize("flags", [("--tokens", "1"), ("--shares", "0"), ("--shares", "1.5"), ("--repeats", "0")])
def test_nonsense_is_refused(flags: tuple[str, str], load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        load("head").parse(flags)
    assert flags[0] in capsys.readouterr().err
