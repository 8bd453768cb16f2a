"""The benchmark of the experts: its output, that all ways hold the same weights, and that it notices when they differ.

Nothing here looks at how fast anything is.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_runs import Load, run
from safetensors.torch import save_file

from aria_finetune.model.nf4 import EXPERT_TENSORS

SMALL = {"hidden": 128, "width": 64, "experts": 8, "top_k": 2, "tokens": 40}


def test_the_last_line_is_the_result() -> None:
    sizes = [word for name, size in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(size))]
    *shown, last = run("experts.py", *sizes, "--dense", "--repeats", "1", "--steps", "2", "--json")
    result = json.loads(last)
    assert any("times as fast" in line for line in shown)
    assert {name: result[name] for name in SMALL} == SMALL
    assert (result["device"], result["routing"], result["checkpointing"]) == ("cpu", "uniform", True)
    assert result["allocator"] == {"THP_MEM_ALLOC_ENABLE": "0"}, "the caller's setting was not kept"
    assert result["versions"]["torch"] == torch.__version__
    ways = {
        name: (result[name]["implementation"], result[name]["weights"]) for name in ("stock", "eager", "ours", "dense")
    }
    assert ways == {
        "stock": ("grouped_mm", "nf4"),
        "eager": ("eager", "nf4"),
        "ours": ("lean", "nf4"),
        "dense": ("lean", "bf16"),
    }
    for way in ways:
        side = result[way]
        assert len(side["seconds"]) == 2
        assert side["tokens_per_second"] == pytest.approx(40 / side["seconds_per_step"])
        assert side["forward_seconds"] > 0 < side["backward_seconds"]
        assert side["processor_seconds"] > 0
    numbers = 8 * 3 * 128 * 64
    assert result["dense"]["model_gib"] * 2**30 == numbers * 2
    assert result["ours"]["model_gib"] * 2**30 == pytest.approx(numbers * 0.516, rel=0.01)
    assert list(result["against"]) == ["stock", "eager", "dense"]
    for way, ratios in result["against"].items():
        assert ratios["speedup"] == pytest.approx(
            result["ours"]["tokens_per_second"] / result[way]["tokens_per_second"]
        )
    assert result["speedup"] == result["against"]["stock"]["speedup"]
    assert result["ways_agree"] is True
    assert all(0 < value < 0.02 for value in result["relative_difference"]["ours"].values())


def job(one_experts: ModuleType, **changes: Any) -> Any:
    described = {
        "path": "ours",
        "implementation": "lean",
        "weights": "nf4",
        "device": "cpu",
        **SMALL,
        "routing": "uniform",
    }
    return one_experts.Job(
        **described | {"exponent": 1.0, "at_a_time": None, "checkpointing": True, "steps": 1, "seed": 0} | changes
    )


def test_all_ways_hold_the_same_weights(load: Load) -> None:
    one_experts = load("one_experts")
    packed, dense = (one_experts.build(job(one_experts, weights=weights)) for weights in ("nf4", "bf16"))
    for name in EXPERT_TENSORS:
        assert torch.equal(getattr(packed, name), getattr(dense, name))
        assert getattr(dense, name).float().std().item() == pytest.approx(128**-0.5, rel=0.05)


def test_checkpointing_changes_no_gradient(load: Load) -> None:
    one_experts = load("one_experts")
    (_, plain), (_, checkpointed) = (
        one_experts.measure(job(one_experts, checkpointing=wanted)) for wanted in (False, True)
    )
    assert plain.keys() == {"output", "tokens", "weights"}
    assert all(torch.equal(checkpointed[name], value) and value.abs().max() > 0 for name, value in plain.items())


@pytest.mark.parametrize("changes", [{}, {"at_a_time": 3}])
def test_another_way_is_measured_by_its_name(load: Load, changes: dict[str, int]) -> None:
    one_experts = load("one_experts")
    _, due = one_experts.measure(job(one_experts))
    result, found = one_experts.measure(job(one_experts, implementation="grouped", **changes))
    assert len(result["forward_seconds"]) == 1
    for name, value in due.items():
        assert 0 < (found[name] - value).norm() < 0.02 * value.norm()


def test_zipf_routing_falls_off_with_the_rank(load: Load) -> None:
    one_experts = load("one_experts")

    def chosen(routing: str, number: int = 0, top_k: int = 1) -> torch.Tensor:
        given = one_experts.random_inputs(job(one_experts, routing=routing, tokens=20_000, top_k=top_k), number)
        assert given.index.shape == given.weights.shape == (20_000, top_k)
        index: torch.Tensor = given.index
        return index

    shares = torch.bincount(chosen("zipf").flatten(), minlength=8) / 20_000
    rank = torch.arange(1, 9)
    torch.testing.assert_close(shares, (1 / rank) / (1 / rank).sum(), rtol=0, atol=0.02)
    even = torch.bincount(chosen("uniform").flatten(), minlength=8) / 20_000
    torch.testing.assert_close(even, torch.full((8,), 1 / 8), rtol=0, atol=0.02)
    first, second = chosen("zipf", top_k=2).T
    assert bool((first != second).all()), "a token chose an expert twice"
    assert torch.equal(chosen("zipf", 1), chosen("zipf", 1))
    assert not torch.equal(chosen("zipf", 1), chosen("zipf", 2))


def written(folder: Path, seconds: list[float], processor: float, peak_bytes: int, output: float) -> Path:
    folder.mkdir(parents=True)
    described: dict[str, Any] = {**SMALL, "device": "cpu", "device_name": "abacus", "threads": 1, "routing": "uniform"}
    described |= {
        "exponent": 1.0,
        "at_a_time": None,
        "checkpointing": False,
        "steps": len(seconds),
        "seed": 0,
        "model_bytes": 2**30,
    }
    described |= {"implementation": "some", "weights": "nf4", "expert_load": {"min": 0.0, "mean": 0.5, "max": 1.0}}
    described |= {"forward_seconds": [1.0] * len(seconds), "backward_seconds": [second - 1 for second in seconds]}
    described |= {"processor_seconds": [processor] * len(seconds), "peak_bytes": peak_bytes}
    (folder / "result.json").write_text(json.dumps(described))
    save_file(
        {"output": torch.tensor([output]), "tokens": torch.ones(2), "weights": torch.ones(2)},
        folder / "evidence.safetensors",
    )
    return folder


@pytest.mark.parametrize(("output", "agree"), [(10.1, True), (11.0, False), (float("nan"), False)])
def test_ratios_are_those_of_medians(load: Load, tmp_path: Path, output: float, agree: bool) -> None:
    report = load("experts_report")
    runs = {
        "stock": [
            written(tmp_path / "s0", [4.0, 6.0], 4.0, 800, 10.0),
            written(tmp_path / "s1", [8.0, 10.0], 4.0, 600, 10.0),
        ],
        "eager": [
            written(tmp_path / "e0", [9.0, 9.0], 9.0, 900, 10.0),
            written(tmp_path / "e1", [9.0, 9.0], 9.0, 900, 10.0),
        ],
        "ours": [
            written(tmp_path / "o0", [2.0, 3.0], 2.0, 70, output),
            written(tmp_path / "o1", [3.0, 9.0], 2.0, 70, output),
        ],
    }
    summary = report.summarise(runs, {"SETTING": "1"})
    assert summary["stock"]["seconds_per_step"] == 7.0
    assert summary["ours"]["seconds_per_step"] == 3.0
    assert summary["speedup"] == pytest.approx(7 / 3)
    assert summary["speedup_by_repeat"] == pytest.approx([5 / 2.5, 9 / 6])
    assert summary["processor_speedup"] == 2.0
    assert summary["memory_ratio"] == pytest.approx(0.1)
    assert summary["against"]["eager"]["speedup"] == 3.0
    assert summary["ours"]["forward_seconds"] == 1.0
    assert summary["ways_agree"] is agree
    assert ("DO NOT COMPUTE THE SAME" in report.table(summary)) is not agree


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "0"], "--tokens must be at least 1"),
        (["--at-a-time", "0"], "--at-a-time must be at least 1"),
        (["--top-k", "9", "--experts", "8"], "--top-k 9 of 8 experts"),
        (["--width", "100"], "multiples of 64"),
        (["--ours", "abacus"], "transformers knows"),
        (["--device", "abacus"], "invalid choice"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    load: Load, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        load("experts").parse(flags)
    assert message in capsys.readouterr().err


def test_a_file_says_what_was_measured(load: Load) -> None:
    experts = load("experts")

    def name(*flags: str) -> str:
        return "-".join(experts.name_parts(experts.parse(flags)))

    assert name() == "experts-cpu-256t-uniform"
    flags = (
        "--tokens",
        "64",
        "--hidden",
        "128",
        "--routing",
        "zipf",
        "--exponent",
        "1.5",
        "--ours",
        "eager",
        "--plain",
    )
    assert name(*flags) == "experts-cpu-64t-zipf-128hidden-exponent1.5-eager-plain"


def test_a_peak_too_short_to_be_seen_gives_no_ratio(load: Load, tmp_path: Path) -> None:
    report = load("experts_report")
    runs = {
        "stock": [written(tmp_path / "stock", [1.0, 1.0], 1.0, 600, 10.0)],
        "eager": [written(tmp_path / "eager", [1.0, 1.0], 1.0, 0, 10.0)],
        "ours": [written(tmp_path / "ours", [1.0, 1.0], 1.0, 60, 10.0)],
    }
    summary = report.summarise(runs, {})
    assert summary["against"]["stock"]["memory_ratio"] == pytest.approx(0.1)
    assert summary["against"]["eager"]["memory_ratio"] is None
    assert "memory ratio not seen" in report.table(summary)
