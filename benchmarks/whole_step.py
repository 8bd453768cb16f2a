"""A whole training step, from pixels to AdamW, in every way that a goal is set against: tokens/s, memory, and use of the device.

    python benchmarks/whole_step.py --device cuda --layers 28 --tokens 8192 --json --save
    python benchmarks/whole_step.py --device cpu --layers 1 --tokens 256 --ways stock ours --json

`stock` and `eager` are NF4 experts as bitsandbytes leaves them, under transformers' `grouped_mm` and its loop over experts, with TRL's
loss; `ours` is what a run does, `dense` the same on experts that are not quantised, `cached` (with `--images`) the same on image
features computed before. A process each, in turn. A way that fails, of memory for one, is told and left out. Those that are left must
come to the same gradients in the first step, else the exit code is 1. Knows nothing of how a way is measured (`one_whole_step.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from report import (
    BODY_TOLERANCE,
    EVIDENCE_FILE,
    FEATURES_TOLERANCE,
    GIB,
    difference,
    memory_ratio,
    phase_lines,
    read_results,
    shown_ratio,
)
from safetensors.torch import load_file
from step import ALLOCATOR, IMAGE_TOKENS, run_path, save

from aria_finetune.provenance import versions

HERE = Path(__file__).parent
WAYS = ("stock", "eager", "dense", "ours", "cached")
H100_TERAFLOPS = 798.0
"""What an H100 was measured to reach with large products in bf16: 10^12 operations per second."""
DESCRIBED = (
    "device",
    "device_name",
    "scale",
    "layers",
    "tokens",
    "labels",
    "images",
    "tile",
    "steps",
    "seed",
    "threads",
)


def main() -> int:
    """Measure, compare, print; 0 when the ways agree."""
    arguments = parse(sys.argv[1:])
    allocator = {name: os.environ.get(name, value) for name, value in ALLOCATOR[arguments.device].items()}
    with tempfile.TemporaryDirectory() as folder:
        runs, failed = run_all(arguments, allocator, Path(folder))
        if "ours" not in runs:
            print("ours failed: there is nothing to compare", file=sys.stderr)
            return 1
        summary = {**summarise(runs, arguments.teraflops), "failed": failed, "allocator": allocator}
    print(table(summary))
    if arguments.save:
        save(summary, name_parts(arguments))
    if arguments.json:
        print(json.dumps(summary))
    return 0 if summary["ways_agree"] else 1


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Time and memory of a whole training step in several ways.")
    parser.add_argument("--device", choices=sorted(ALLOCATOR), default="cpu")
    parser.add_argument("--layers", type=int, default=1, help="decoder layers; Aria has 28 (default 1)")
    parser.add_argument("--tokens", type=int, default=256, help="in the one row of a step (default 256)")
    parser.add_argument("--labels", type=int, help="of them in the loss, the last ones (default half of the text)")
    parser.add_argument("--images", type=int, default=0, help="at the start of the row (default none)")
    parser.add_argument(
        "--tile", type=int, choices=sorted(IMAGE_TOKENS), default=980, help="side of an image in pixels"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="ours always is one (default all; cached with images)")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each way (default 2)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, adapters and inputs")
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small is for trying this program")
    parser.add_argument(
        "--teraflops", type=float, default=H100_TERAFLOPS, help="of the GPU, for its use (default 798, an H100)"
    )
    parser.add_argument("--phases", action="store_true", help="one more step of each way under the profiler")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args(words)
    image_tokens = arguments.images * IMAGE_TOKENS[arguments.tile]
    if arguments.labels is None:
        arguments.labels = max((arguments.tokens - image_tokens) // 2, 1)
    for name in ("layers", "tokens", "labels", "repeats", "steps", "teraflops"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name} must be above 0")
    if arguments.images < 0 or arguments.tokens - image_tokens <= arguments.labels:
        parser.error(f"--tokens must be more than the {image_tokens} of images and the {arguments.labels} of labels")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    wanted = arguments.ways or [way for way in WAYS if way != "cached" or arguments.images]
    if "cached" in wanted and not arguments.images:
        parser.error("--ways cached needs --images")
    arguments.ways = [way for way in WAYS if way in {*wanted, "ours"}]
    return arguments


def name_parts(arguments: argparse.Namespace) -> list[str]:
    """What the name of a result says of how it was measured."""
    parts = ["whole_step", arguments.device, f"{arguments.layers}l", f"{arguments.tokens}t"]
    parts += [f"{arguments.images}i{arguments.tile}"] if arguments.images else []
    return parts + ([arguments.scale] if arguments.scale != "full" else [])


def run_all(
    arguments: argparse.Namespace, allocator: Mapping[str, str], folder: Path
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Every way in a process of its own, over and over; folders of results by way, and why a way has none."""
    wanted = ("device", "scale", "layers", "tokens", "labels", "images", "tile", "steps", "seed")
    job = {name: getattr(arguments, name) for name in wanted}
    runs: dict[str, list[Path]] = {way: [] for way in arguments.ways}
    failed: dict[str, str] = {}
    for repeat in range(arguments.repeats):
        for way in [way for way in arguments.ways if way not in failed]:
            print(f"{way}, process {repeat + 1} of {arguments.repeats}", file=sys.stderr, flush=True)
            profiled = arguments.phases and repeat == 0
            try:
                place = folder / f"{way}-{repeat}"
                runs[way].append(
                    run_path("one_whole_step.py", {**job, "path": way, "phases": profiled}, allocator, place)
                )
            except SystemExit as error:
                print(error, file=sys.stderr)
                failed[way] = str(error)
    return {way: folders for way, folders in runs.items() if way not in failed}, failed


def summarise(runs: Mapping[str, Sequence[Path]], teraflops: float) -> dict[str, Any]:
    """The JSON object: each way, how ours compares with every other, and how far their first gradients are from ours.

    Args:
        runs: folders of the runs of each way, in order; `ours` is among them.
        teraflops: 10^12 operations per second that count as all that the device can do.
    """
    results = {way: read_results(folders) for way, folders in runs.items()}
    sides = {way: _side(found) for way, found in results.items()}
    evidence = {way: load_file(folders[0] / EVIDENCE_FILE) for way, folders in runs.items()}
    apart = {way: difference(evidence["ours"], evidence[way], list(evidence["ours"])) for way in runs if way != "ours"}
    first = results["ours"][0]
    # Stock's tower is in bf16, ours on a CPU in fp32: what it makes of pictures shows in the gradients.
    tolerance = FEATURES_TOLERANCE if first["images"] else BODY_TOLERANCE
    if first["device"] == "cuda":
        for side in sides.values():
            side["use_of_device"] = side["teraflops"] / teraflops
    return {
        # One by one: `max` would pass over a NaN.
        "ways_agree": all(value <= tolerance for value in apart.values()),
        "gradient_relative_difference": apart,
        "against": {way: _ratios(results, sides, way) for way in runs if way != "ours"},
        "teraflops_of_device": teraflops if first["device"] == "cuda" else None,
        **{name: first[name] for name in DESCRIBED},
        "repeats": len(runs["ours"]),
        "step": "images, decoder body with non-reentrant checkpointing under bf16 autocast, loss, backward, clipping, AdamW",
        "ways": sides,
        "versions": versions(),
    }


def table(summary: Mapping[str, Any]) -> str:
    """The summary for people."""
    ways: Mapping[str, Any] = summary["ways"]
    what = (
        f"{summary['layers']} layer(s) at {summary['scale']} size, {summary['tokens']} tokens, {summary['labels']} labels, "
        f"{summary['images']} image(s) of {summary['tile']} px, {summary['device_name']}, {summary['threads']} CPU thread(s)"
    )
    rows = {
        "seconds per step, median": lambda side: f"{side['seconds_per_step']:.3f}",
        "tokens per second": lambda side: f"{side['tokens_per_second']:.1f}",
        "teraflops": lambda side: f"{side['teraflops']:.3f}",
        "use of the device": lambda side: f"{side['use_of_device']:.1%}" if "use_of_device" in side else "",
        "peak with the model, GiB": lambda side: f"{side['peak_gib']:.3f}",
        "model, GiB": lambda side: f"{side['model_gib']:.3f}",
    }
    lines = [
        what,
        f"{'':28}" + "".join(f"{way:>12}" for way in ways),
        *(f"{name:28}" + "".join(f"{show(side):>12}" for side in ways.values()) for name, show in rows.items()),
    ]
    for way, ratios in summary["against"].items():
        by_repeat = ", ".join(f"{ratio:.3f}" for ratio in ratios["speedup_by_repeat"])
        lines.append(
            f"ours against {way}: {ratios['speedup']:.3f} times as fast (by repeat: {by_repeat}), memory ratio "
            f"{shown_ratio(ratios['memory_ratio'])}, gradients differ by {summary['gradient_relative_difference'][way]:.4f}"
        )
    if "stock" in ways and ways["stock"]["phases"] and ways["ours"]["phases"]:
        lines += ["seconds by part and what was done there, stock and ours"]
        lines += phase_lines(ways["stock"]["phases"], ways["ours"]["phases"])
    lines += [f"{way} failed: {why}" for way, why in summary["failed"].items()]
    if not summary["ways_agree"]:
        lines.append("THE WAYS DO NOT COMPUTE THE SAME: the ratios above mean nothing")
    return "\n".join(lines)


def _ratios(
    results: Mapping[str, Sequence[Mapping[str, Any]]], sides: Mapping[str, Mapping[str, Any]], other: str
) -> dict[str, Any]:
    """Ours against another way."""
    theirs, ours = sides[other], sides["ours"]
    return {
        "speedup": theirs["seconds_per_step"] / ours["seconds_per_step"],
        "speedup_by_repeat": [
            statistics.median(a["seconds"]) / statistics.median(b["seconds"])
            for a, b in zip(results[other], results["ours"], strict=False)
        ],
        "memory_ratio": memory_ratio(ours["peak_gib"], theirs["peak_gib"]),
    }


def _side(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seconds = [second for run in runs for second in run["seconds"]]
    median = statistics.median(seconds)
    return {
        "seconds_per_step": median,
        "tokens_per_second": runs[0]["tokens"] / median,
        "teraflops": runs[0]["operations"] / median / 1e12,
        "peak_gib": statistics.median(run["peak_bytes"] for run in runs) / GIB,
        "model_gib": runs[0]["built_bytes"] / GIB,
        "seconds": seconds,
        "processor_seconds_per_step": statistics.median(second for run in runs for second in run["processor_seconds"]),
        **{key: runs[0][key] for key in ("losses", "phases", "experts_implementation", "attention_implementation")},
    }


if __name__ == "__main__":
    sys.exit(main())
