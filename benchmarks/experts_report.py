"""What the runs of `experts.py` say: do the ways agree, and how do their times and memory compare. Only arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from report import EVIDENCE_FILE, EXPERTS_TOLERANCE, GIB, difference, memory_ratio, read_results, shown_ratio
from safetensors.torch import load_file

from aria_finetune.provenance import versions

COMPARED = ("output", "tokens", "weights")
"""The output, and the gradients of tokens and of routing weights."""
DESCRIBED = ("device", "device_name", "threads", "hidden", "width", "experts", "top_k", "tokens", "routing", "exponent")


def summarise(runs: Mapping[str, Sequence[Path]], allocator: Mapping[str, str]) -> dict[str, Any]:
    """The JSON object: each way, how much faster ours is than each other, and how far they differ from the stock path.

    Args:
        runs: folders of the runs of each way, in order; `stock` and `ours` are among them.
        allocator: environment variables that all had.
    """
    results = {way: read_results(folders) for way, folders in runs.items()}
    evidence = {way: load_file(folders[0] / EVIDENCE_FILE) for way, folders in runs.items()}
    others = [way for way in runs if way != "stock"]
    apart = {way: {name: difference(evidence["stock"], evidence[way], [name]) for name in COMPARED} for way in others}
    sides = {way: _side(found) for way, found in results.items()}
    against = {way: _ratios(results, sides, way) for way in runs if way != "ours"}
    first = results["stock"][0]
    return {
        **against["stock"],
        # One by one: `max` would pass over a NaN.
        "ways_agree": all(value <= EXPERTS_TOLERANCE for values in apart.values() for value in values.values()),
        "relative_difference": apart,
        "against": against,
        **{name: first[name] for name in (*DESCRIBED, "at_a_time", "checkpointing", "steps", "seed")},
        "expert_load": first["expert_load"],
        "repeats": len(runs["stock"]),
        "allocator": dict(allocator),
        "step": "the routed experts of one layer, forward and backward under bf16 autocast"
        + (" with non-reentrant checkpointing" if first["checkpointing"] else ""),
        **sides,
        "versions": versions(),
    }


def table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    ways = [*summary["against"], "ours"]
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("computed by", lambda side: f"{side['implementation']}, {side['weights']}"),
        ("seconds per step, median", lambda side: f"{side['seconds_per_step']:.4f}"),
        ("  forward", lambda side: f"{side['forward_seconds']:.4f}"),
        ("  backward", lambda side: f"{side['backward_seconds']:.4f}"),
        ("  fastest .. slowest", lambda side: f"{min(side['seconds']):.3f} .. {max(side['seconds']):.3f}"),
        ("processor seconds, median", lambda side: f"{side['processor_seconds']:.4f}"),
        ("tokens per second", lambda side: f"{side['tokens_per_second']:.1f}"),
        ("peak above the weights, GiB", lambda side: f"{side['peak_gib']:.3f}"),
        ("weights, GiB", lambda side: f"{side['model_gib']:.3f}"),
    ]
    load = summary["expert_load"]
    what = (
        f"{summary['tokens']} tokens, {summary['routing']} routing, {summary['experts']} experts of {summary['hidden']} x "
        f"{summary['width']}, {summary['top_k']} for a token, {summary['device_name']}, {summary['threads']} CPU thread(s)"
    )
    lines = [
        what,
        f"an expert's share {load['min']:.4f} .. {load['max']:.4f}",
        f"{'':28}" + "".join(f"{way:>18}" for way in ways),
        *(f"{name:28}" + "".join(f"{show(summary[way]):>18}" for way in ways) for name, show in rows),
    ]
    for way, ratios in summary["against"].items():
        by_repeat = ", ".join(f"{ratio:.3f}" for ratio in ratios["speedup_by_repeat"])
        lines.append(
            f"ours against {way}: {ratios['speedup']:.3f} times as fast (by repeat: {by_repeat}; in processor time "
            f"{ratios['processor_speedup']:.3f}), memory ratio {shown_ratio(ratios['memory_ratio'])}"
        )
    for way, values in summary["relative_difference"].items():
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        lines.append(f"{way} differs from stock: {shown}")
    if not summary["ways_agree"]:
        lines.append("THE WAYS DO NOT COMPUTE THE SAME: the ratios above mean nothing")
    return "\n".join(lines)


def _seconds(run: Mapping[str, Any]) -> list[float]:
    return [
        forward + backward for forward, backward in zip(run["forward_seconds"], run["backward_seconds"], strict=True)
    ]


def _ratios(
    results: Mapping[str, Sequence[dict[str, Any]]], sides: Mapping[str, dict[str, Any]], other: str
) -> dict[str, Any]:
    """Ours against another way."""
    a, b = sides[other], sides["ours"]
    return {
        "speedup": a["seconds_per_step"] / b["seconds_per_step"],
        "speedup_by_repeat": [
            statistics.median(_seconds(theirs)) / statistics.median(_seconds(ours))
            for theirs, ours in zip(results[other], results["ours"], strict=True)
        ],
        "processor_speedup": a["processor_seconds"] / b["processor_seconds"],
        "memory_ratio": memory_ratio(b["peak_gib"], a["peak_gib"]),
    }


def _side(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = [second for run in runs for second in _seconds(run)]
    median = statistics.median(seconds)

    def part(name: str) -> float:
        return statistics.median(second for run in runs for second in run[f"{name}_seconds"])

    return {
        "implementation": runs[0]["implementation"],
        "weights": runs[0]["weights"],
        "seconds_per_step": median,
        "tokens_per_second": runs[0]["tokens"] / median,
        "forward_seconds": part("forward"),
        "backward_seconds": part("backward"),
        "processor_seconds": part("processor"),
        "peak_gib": statistics.median(run["peak_bytes"] for run in runs) / GIB,
        "model_gib": runs[0]["model_bytes"] / GIB,
        "seconds": seconds,
    }
