"""The tables of the benchmarks' README are those that the result files make."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_runs import BENCHMARKS, Load, run


@pytest.fixture
def tables(load: Load) -> ModuleType:
    return load("tables")


def test_the_readme_is_up_to_date() -> None:
    run("tables.py", "--check")


def test_every_result_of_a_known_kind_has_a_line(tables: ModuleType) -> None:
    made = tables.tables(BENCHMARKS / "results")
    files = [list((BENCHMARKS / "results").glob(f"{kind.prefix}-*.json")) for kind in tables.KINDS]
    lines = sum(
        len(list(kind.lines(json.loads(file.read_text()))))
        for kind, found in zip(tables.KINDS, files, strict=True)
        for file in found
    )
    assert made.count("\n| ") == lines + 2 * sum(1 for found in files if found)
    assert lines >= sum(map(len, files))


def test_every_case_of_a_file_has_a_line_and_256_comes_before_1024(tables: ModuleType, tmp_path: Path) -> None:
    side = {"seconds": 3.0, "cpu_seconds": 1.0, "peak_mib": 10.0}
    case = {"labels": 5, "trl": side, "ours": side, "times_as_fast": 1.0, "memory_ratio": 1.0}
    for tokens in (256, 1024):
        cases = [{**case, "tokens": tokens}, {**case, "tokens": tokens, "labels": 7}]
        result = {"device": "cpu", "device_name": "a processor", "threads": 1, "cases": cases}
        (tmp_path / f"head-cpu-{tokens}t.json").write_text(json.dumps(result))
    lines = [line for line in tables.tables(tmp_path).splitlines() if line.startswith("| a processor")]
    assert [line.split(" | ")[1:3] for line in lines] == [["256", "5"], ["256", "7"], ["1,024", "5"], ["1,024", "7"]]
    assert all(line.split(" | ")[3] == "1.00 / 1.00" for line in lines), "on a CPU the clock is the processor's"


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
