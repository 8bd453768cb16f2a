"""The benchmark of merging runs at a small scale and says what it measured. Nothing looks at how much that is."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_runs import Load, result_of


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    small = ("--scale", "small", "--layers", "2")
    found = result_of("merging.py", *small, "--ways", "merge", "proof", "--folder", tmp_path, "--json")
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


def test_nonsense_is_refused(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        load("merging").parse(["--ways", "proof"])
    assert "looks at what merge has made" in capsys.readouterr().err
