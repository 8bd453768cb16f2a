"""The tables of the benchmarks' README are those that the result files make."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables")


def test_the_readme_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_result_of_a_known_kind_has_a_line(tables: ModuleType) -> None:
    made = tables.tables(BENCHMARKS / "results")
    files = [file for kind in tables.KINDS for file in (BENCHMARKS / "results").glob(f"{kind.prefix}-*.json")]
    kinds = {file.name.split("-")[0] for file in files}
    assert made.count("\n| ") == len(files) + 2 * len(kinds)


def test_figures_come_from_the_file(tables: ModuleType, tmp_path: Path) -> None:
    side = {"seconds_per_step": 3.0, "peak_gib": 1.5}
    result = {"device": "cpu", "device_name": "a processor", "threads": 1, "layers": 2, "tokens": 4096}
    result |= {"images": 1, "tile": 490, "speedup": 2.0, "speedup_by_repeat": [1.9, 2.1], "memory_ratio": 0.333}
    result |= {"stock": side, "ours": {"seconds_per_step": 1.5, "peak_gib": 0.5}}
    (tmp_path / "step-cpu-2l-4096t.json").write_text(json.dumps(result))
    line = "| a processor, 1 thread | 2 | 4,096 | 1 of 490 px | 3.00 / 1.50 | **2.00** (1.90, 2.10) | 1.50 / 0.50 | **0.33** |"
    assert line in tables.tables(tmp_path).splitlines()


def test_marks_must_be_there_once(tables: ModuleType) -> None:
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    assert tables.replaced(text, "new\n") == f"before\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nafter\n"
    for broken in ("nothing", text + tables.BEGIN):
        with pytest.raises(ValueError, match="once each"):
            tables.replaced(broken, "new\n")
