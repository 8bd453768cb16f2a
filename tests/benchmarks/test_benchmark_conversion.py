"""The benchmark of conversion runs and tells what it measured. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmark_runs import run


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    # A fresh process: its memory is that of all that come of it, and a forked one would not be among them.
    *table, last = run("conversion.py", "--records", "300", "--folder", tmp_path, "--json", python=sys.executable)
    result = json.loads(last)
    assert (result["records"], result["workers"]) == (300, 2)
    for layout in ("json_lines", "json_list"):
        found = result[layout]
        assert found["ours"]["seconds"] > 0
        assert found["times_faster_in_all"] == round(found["datasets"]["seconds"] / found["ours"]["seconds"], 2)
        assert found["datasets"]["map_seconds"] < found["datasets"]["seconds"]
        assert any(line.startswith(f"{layout}: ours ") for line in table)
    assert list(tmp_path.iterdir()) == []
