"""The benchmark of headers runs and tells what it measured. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_runs import Load, run


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    *table, last = run("headers.py", "--images", "30", "--repeats", "1", "--folder", tmp_path, "--json")
    result = json.loads(last)
    assert result["images"] == 30
    assert 50_000 < result["mean_bytes"] < 200_000
    for who, counts in (("ours", {"1", "2"}), ("pillow", {"1"})):
        assert set(result[who]) == counts
        for measured in result[who].values():
            assert measured["images_per_second"] > 0
            assert measured["cpu_microseconds"] > 0
    assert len(table) == 4
    assert not list(tmp_path.iterdir()), "its files were left behind"


def test_nonsense_is_refused(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        load("headers").parse(["--images", "0"])
    assert "--images must be at least 1" in capsys.readouterr().err
