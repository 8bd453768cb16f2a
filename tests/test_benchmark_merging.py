"""The benchmark of merging runs at a small scale and says what it measured. Nothing looks at how much that is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "merging.py"), *map(str, flags)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    done = run("--scale", "small", "--layers", "2", "--ways", "merge", "proof", "--folder", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # By hand: four linears, the router and two stacks in each layer.
    assert found["merge"]["tensors"] == 2 * (4 + 1 + 2)
    # Four squares of 256, a router of 64, and 64 experts with gate, up and down of 128, at rank 8.
    assert found["adapter_weights"] == 2 * 8 * (4 * 512 + (256 + 64) + 64 * ((256 + 256) + (128 + 256)))
    assert found["checkpoint_bytes"] > 2 * 2 * 64 * (256 * 256 + 128 * 256)
    assert found["proof"]["verdict"] == "ok"
    assert 0 < found["proof"]["kl"] < found["proof"]["kl_of_the_base"]
    for way in ("merge", "proof"):
        assert found[way]["peak_bytes"] >= found[way]["imported_bytes"] > 0
    assert not list(tmp_path.iterdir()), "its files were left behind"


def test_nonsense_is_refused() -> None:
    assert "looks at what merge has made" in run("--ways", "proof").stderr
