"""The benchmark of headers runs and tells what it measured. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "headers.py"), *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    done = run("--images", "30", "--repeats", "1", "--folder", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
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


def test_nonsense_is_refused() -> None:
    done = run("--images", "0")
    assert done.returncode == 2
    assert "--images must be at least 1" in done.stderr
