"""Run a script of the benchmarks in a process of its own, and read what it says."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from command_server import commands_in

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"

Load = Callable[[str], ModuleType]
"""Imports a module of the benchmarks by name: the fixture `load`."""


def run(script: str, *flags: str | Path, python: Path | str | None = None) -> list[str]:
    """The lines of a script's standard output; it must succeed. `THP_MEM_ALLOC_ENABLE` is set, as a caller may.

    It is forked, as are the processes that it starts, unless another `python` is named.
    """
    done = subprocess.run(
        [python or forking_python(), str(BENCHMARKS / script), *map(str, flags)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@cache
def forking_python() -> Path:
    """A `python` whose scripts are forked from a process that has imported everything; until this process ends."""
    works = ExitStack()
    atexit.register(works.close)
    folder = Path(works.enter_context(tempfile.TemporaryDirectory()))
    return works.enter_context(commands_in(folder)) / "python"


def result_of(script: str, *flags: str | Path, python: Path | str | None = None) -> Any:
    """What the last line of a script's output says."""
    return json.loads(run(script, *flags, python=python)[-1])
