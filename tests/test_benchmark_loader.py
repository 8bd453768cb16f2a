"""The benchmark of the loader runs and tells what it measured. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "loader.py"), *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    few = ("--images", "2", "--clips", "2", "--batch", "1", "--workers", "0", "--repeats", "1", "--size", "490")
    done = run(*few, "--folder", str(tmp_path), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result["ways_agree"], "both see the same pictures and frames"
    assert set(result["sources"]) == {"folder", "parquet", "video"}
    assert len(table) == 2 + 3
    for source in result["sources"].values():
        sides = source["workers"]["0"]
        assert sides["times_as_fast"] == sides["ours"]["images_per_second"] / sides["stock"]["images_per_second"]
        for way in ("stock", "ours"):
            assert sides[way]["cpu_milliseconds"] > 0
            assert sides[way]["rates"] == [sides[way]["images_per_second"]]
        # Bytes in place of floats: a picture is 3 x 490 x 490 of either.
        pictures = {way: round(sides[way]["megabytes_per_batch"] / 0.72) for way in ("ours", "stock")}
        assert pictures["stock"] >= 4 * pictures["ours"] > 0
    assert not list(tmp_path.iterdir()), "its files were left behind"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--images", "7"), "every worker must have two batches"),
        (("--clips", "3"), "every worker must have two batches"),
        (("--repeats", "0"), "--repeats must be at least 1"),
    ],
)
def test_nonsense_is_refused(flags: tuple[str, str], words: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert words in done.stderr
