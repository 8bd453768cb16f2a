"""Run a script of the benchmarks in a process of its own, and read what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"

Load = Callable[[str], ModuleType]
"""Imports a module of the benchmarks by name: the fixture `load`."""


def run(script: str, *flags: str | Path) -> list[str]:
    """The lines of a script's standard output; it must succeed. `THP_MEM_ALLOC_ENABLE` is set, as a caller may."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, flags)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def result_of(script: str, *flags: str | Path) -> Any:
    """What the last line of a script's output says."""
    return json.loads(run(script, *flags)[-1])
