"""The benchmark of conversion runs and tells what it measured. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/conversion.py", "--records", "300", "--folder", str(tmp_path), "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert (result["records"], result["workers"]) == (300, 2)
    for layout in ("json_lines", "json_list"):
        found = result[layout]
        assert found["ours"]["seconds"] > 0
        assert found["times_faster_in_all"] == round(found["datasets"]["seconds"] / found["ours"]["seconds"], 2)
        assert found["datasets"]["map_seconds"] < found["datasets"]["seconds"]
        assert any(line.startswith(f"{layout}: ours ") for line in table)
    assert list(tmp_path.iterdir()) == []
