"""What two sets of runs say: do the paths agree, and how do their times and memory compare. Only arithmetic."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from aria_finetune.provenance import versions

GIB = 2**30
RESULT_FILE = "result.json"
EVIDENCE_FILE = "evidence.safetensors"
BODY_TOLERANCE = 0.02
"""On adapter gradients. Stock routes in bf16 and we in fp32, which shows as up to 0.006 over 28 layers."""
ROUTER_TOLERANCE = 0.05
"""On the routers' share of them, so small beside attention's that they need a look of their own."""
EXPERTS_TOLERANCE = 0.03
"""On the routed experts alone, where the same shows as 0.01. A gradient wrong by a tenth shows as 0.08."""
FEATURES_TOLERANCE = 0.1
"""On image features. Stock computes 27 layers and the projector in bf16, which shows as 0.04 where we compute in fp32."""

Evidence = dict[str, torch.Tensor]


def summarise(stock: Sequence[Path], ours: Sequence[Path], allocator: dict[str, str]) -> dict[str, Any]:
    """The JSON object of the ruler.

    Args:
        stock: folders of the runs of the stock path, in order.
        ours: those of our path.
        allocator: environment variables that both had.
    """
    results = {"stock": read_results(stock), "ours": read_results(ours)}
    first = results["stock"][0]
    sides = {name: _side(runs) for name, runs in results.items()}
    same = agreement(load_file(stock[0] / EVIDENCE_FILE), load_file(ours[0] / EVIDENCE_FILE))
    return {
        "speedup": sides["stock"]["seconds_per_step"] / sides["ours"]["seconds_per_step"],
        "speedup_by_repeat": [
            statistics.median(a["seconds"]) / statistics.median(b["seconds"])
            for a, b in zip(results["stock"], results["ours"], strict=True)
        ],
        "speedup_in_processor_time": sides["stock"]["processor_seconds_per_step"]
        / sides["ours"]["processor_seconds_per_step"],
        "memory_ratio": memory_ratio(sides["ours"]["peak_gib"], sides["stock"]["peak_gib"]),
        **same,
        **{
            key: first[key]
            for key in ("device", "device_name", "scale", "layers", "tokens", "images", "tile", "steps", "seed")
        },
        "repeats": len(stock),
        "threads": first["threads"],
        "allocator": allocator,
        "step": "decoder body (with the vision tower where there are images), forward and backward with non-reentrant "
        "checkpointing under bf16 autocast; no lm_head, no optimiser",
        "stock": sides["stock"],
        "ours": sides["ours"],
        "versions": versions(),
    }


def memory_ratio(ours: float, theirs: float) -> float | None:
    """Our peak over theirs; None where sampling saw nothing of one, as of work done in a few milliseconds on a CPU."""
    return ours / theirs if ours and theirs else None


def shown_ratio(ratio: float | None, digits: int = 3) -> str:
    """A ratio for people."""
    return "not seen" if ratio is None else f"{ratio:.{digits}f}"


def table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("seconds per step, median", lambda side: f"{side['seconds_per_step']:.3f}"),
        ("  fastest .. slowest", lambda side: f"{min(side['seconds']):.3f} .. {max(side['seconds']):.3f}"),
        ("  of processor time, median", lambda side: f"{side['processor_seconds_per_step']:.3f}"),
        ("tokens per second", lambda side: f"{side['tokens_per_second']:.1f}"),
        ("peak above the model, GiB", lambda side: f"{side['peak_gib']:.3f}"),
        ("model, GiB", lambda side: f"{side['model_gib']:.3f}"),
        ("expert share, min .. max", lambda s: f"{s['expert_load']['min']:.4f} .. {s['expert_load']['max']:.4f}"),
    ]
    experts = summary["experts_relative_difference"]
    by_repeat = ", ".join(f"{ratio:.3f}" for ratio in summary["speedup_by_repeat"])
    what = f"{summary['layers']} layer(s) at {summary['scale']} size, {summary['tokens']} tokens"
    lines = [
        f"{what}, {summary['images']} image(s) of {summary['tile']} px, {summary['device_name']}, {summary['threads']} CPU thread(s)",
        f"{'':28}{'stock':>18}{'ours':>18}",
        *(f"{name:28}{show(summary['stock']):>18}{show(summary['ours']):>18}" for name, show in rows),
        f"speedup {summary['speedup']:.3f} (by repeat: {by_repeat}), memory ratio {shown_ratio(summary['memory_ratio'])}",
        f"adapter gradients differ by {summary['gradient_relative_difference']:.4f} (relative)",
        f"the experts alone by {experts['output']:.4f}, their input gradient by {experts['input_gradient']:.4f}",
        f"routing is the same for {summary['routing_agreement']:.2%} of all choices",
    ]
    if summary["features_relative_difference"] is not None:
        lines.append(f"image features differ by {summary['features_relative_difference']:.4f}")
    if summary["stock"]["phases"] and summary["ours"]["phases"]:
        lines += [
            "seconds by part and what was done there",
            *phase_lines(summary["stock"]["phases"], summary["ours"]["phases"]),
        ]
    if not summary["paths_agree"]:
        lines.append("THE PATHS DO NOT COMPUTE THE SAME: the ratios above mean nothing")
    return "\n".join(lines)


def phase_lines(stock: dict[str, dict[str, float]], ours: dict[str, dict[str, float]]) -> list[str]:
    """A line for each part of the model and each thing done there, of both paths."""
    parts = [stock, ours]
    lines = []
    for part in dict.fromkeys([*stock, *ours]):
        totals = [sum(side.get(part, {}).values()) for side in parts]
        lines.append(f"{part:28}{totals[0]:>18.3f}{totals[1]:>18.3f}")
        for doing in dict.fromkeys(name for side in parts for name in side.get(part, {})):
            spent = [side.get(part, {}).get(doing, 0.0) for side in parts]
            lines.append(f"  {doing:26}{spent[0]:>18.3f}{spent[1]:>18.3f}")
    return lines


def read_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What processes found, in the order of their folders."""
    return [json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")) for folder in folders]


def _side(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = [second for run in runs for second in run["seconds"]]
    median = statistics.median(seconds)
    return {
        "seconds_per_step": median,
        "tokens_per_second": runs[0]["tokens"] / median,
        "peak_gib": statistics.median(run["peak_bytes"] for run in runs) / GIB,
        "model_gib": runs[0]["model_bytes"] / GIB,
        "seconds": seconds,
        "processor_seconds_per_step": statistics.median(second for run in runs for second in run["processor_seconds"]),
        **{
            key: runs[0][key]
            for key in ("phases", "expert_load", "experts_implementation", "attention_implementation", "adapter_dtypes")
        },
    }


def agreement(stock: Evidence, ours: Evidence) -> dict[str, Any]:
    """How far the first steps differ: ||ours - stock|| / ||stock||, and the share of equal routing choices."""
    if stock.keys() != ours.keys():
        raise RuntimeError(f"only one path has {sorted(stock.keys() ^ ours.keys())[:4]}")
    gradients = [name for name in stock if name.startswith("gradient.")]
    body = difference(stock, ours, gradients)
    by_target = {
        target: difference(stock, ours, [name for name in gradients if part in name])
        for target, part in (("attention", ".self_attn."), ("router", ".router."))
    }
    experts = {part: difference(stock, ours, [f"experts.{part}"]) for part in ("output", "input_gradient")}
    features = difference(stock, ours, ["features"]) if "features" in stock else None
    routing = [
        (stock[name][:, :, None] == ours[name][:, None, :]).any(-1).float().mean()
        for name in stock
        if name.startswith("routing.")
    ]
    return {
        # One by one: `max` would pass over a NaN.
        "paths_agree": body <= BODY_TOLERANCE
        and by_target["router"] <= ROUTER_TOLERANCE
        and all(difference <= EXPERTS_TOLERANCE for difference in experts.values())
        and (features is None or features <= FEATURES_TOLERANCE),
        "gradient_relative_difference": body,
        "gradient_relative_difference_by_target": by_target,
        "experts_relative_difference": experts,
        "features_relative_difference": features,
        "routing_agreement": torch.stack(routing).mean().item(),
    }


def difference(stock: Evidence, ours: Evidence, names: Sequence[str]) -> float:
    """||ours - stock|| / ||stock|| over some of the tensors."""
    squares = torch.tensor([[(ours[n] - stock[n]).square().sum(), stock[n].square().sum()] for n in names]).sum(0)
    return (squares[0] / squares[1]).sqrt().item()
