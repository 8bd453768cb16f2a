"""The benchmarks of routing run and say what they found. Nothing here looks at how fast anything is."""

from __future__ import annotations

from pathlib import Path

from benchmark_runs import result_of


def test_the_balance_loss_of_groups_keeps_entropy_up_where_it_collapses_without(tmp_path: Path) -> None:
    picture = tmp_path / "collapse.png"
    without, with_loss = result_of("collapse.py", "--steps", "16", "--picture", picture).values()
    assert without["entropy"][0] == with_loss["entropy"][0] > 0.9, "both begin alike"
    # One group of eight alone, evenly used: log 8 / log 64.
    assert without["entropy"][-1] < 0.55
    assert without["share_of_the_first_group"][-1] > 0.85
    assert min(with_loss["entropy"]) > 0.8
    assert max(with_loss["share_of_the_first_group"]) < 0.4
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_overhead_is_that_of_medians() -> None:
    found = result_of("health.py", "--scale", "small", "--layers", "1", "--tokens", "64", "--steps", "2", "--json")
    for way in ("without", "health", "health_and_losses"):
        assert found[way]["processor_seconds"] > 0
    assert found["overhead"] == found["health"]["seconds"] / found["without"]["seconds"] - 1
