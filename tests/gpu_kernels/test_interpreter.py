"""The tests of this folder once more in a process in which Triton interprets its kernels, for they are compiled otherwise.

What is interpreted is settled when Triton is imported, which torch and bitsandbytes do as well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aria_finetune.kernels.language import INTERPRETED, triton

HERE = Path(__file__).parent
FILES = sorted({path.name for path in HERE.glob("test_*.py")} - {Path(__file__).name, "test_compilation.py"})


@pytest.mark.skipif(triton is None, reason="there is no Triton for this system")
@pytest.mark.skipif(INTERPRETED, reason="this is the process in which it interprets")
def test_kernels_under_the_interpreter() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header", "--durations=3", *FILES],
        cwd=HERE,
        env=environment | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    counts = dict(reversed(found) for found in re.findall(r"(\d+) (passed|skipped)", done.stdout))
    assert int(counts["passed"]) > 50
    assert "skipped" not in counts
