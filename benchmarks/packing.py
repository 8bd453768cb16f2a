"""Rows packed beside rows padded: useful tokens per second, waste and memory on a mix as people have it (`mix.py`).

    python benchmarks/packing.py --device cpu --layers 1 --rows 40 --json

Three ways, a process each, in turn: the stock path on batches padded to their longest row, ours on the same batches, and ours
packed as `data.packing` packs an optimizer step of as many rows. All go once over the same rows, and must come to the same
gradients; a difference beyond bf16 ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from report import BODY_TOLERANCE, EVIDENCE_FILE, GIB, difference, memory_ratio, read_results
from safetensors.torch import load_file
from step import ALLOCATOR, run_in_turn, save

from aria_finetune.provenance import versions

HERE = Path(__file__).parent
WAYS = ("stock", "padded", "packed")


def main() -> int:
    """Measure, compare, print; 0 when all ways come to the same gradients."""
    arguments = parse(sys.argv[1:])
    allocator = {name: os.environ.get(name, value) for name, value in ALLOCATOR[arguments.device].items()}
    wanted = ("device", "scale", "layers", "rows", "batch_size", "max_tokens", "seed")
    jobs = {way: {"path": way} | {name: getattr(arguments, name) for name in wanted} for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        runs = run_in_turn("packed_path.py", jobs, arguments.repeats, allocator, Path(folder))
        summary = summarise(runs, allocator)
    print(table(summary))
    if arguments.save:
        parts = ["packing", arguments.device, f"{arguments.layers}l", f"{arguments.rows}r"]
        save(summary, parts + ([arguments.scale] if arguments.scale != "full" else []))
    if arguments.json:
        print(json.dumps(summary))
    return 0 if summary["ways_agree"] else 1


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Rows packed beside rows padded, on a mix of images, text and videos.")
    parser.add_argument("--device", choices=sorted(ALLOCATOR), default="cpu")
    parser.add_argument("--layers", type=int, default=1, help="decoder layers; Aria has 28 (default 1)")
    parser.add_argument("--rows", type=int, default=40, help="of the mix (default 40)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of an optimizer step (default 8)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of a packed micro-batch (default 4096)")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each way (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, adapters and rows")
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small is for trying this program")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args(words)
    for name in ("layers", "rows", "batch_size", "max_tokens", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return arguments


def summarise(runs: dict[str, list[Path]], allocator: dict[str, str]) -> dict[str, Any]:
    """The JSON object: each way, ratios of useful tokens per second, and how far gradients differ from the stock path's."""
    results = {way: read_results(folders) for way, folders in runs.items()}
    sides = {way: _side(found) for way, found in results.items()}
    evidence = {way: load_file(folders[0] / EVIDENCE_FILE) for way, folders in runs.items()}
    apart = {way: difference(evidence["stock"], evidence[way], list(evidence["stock"])) for way in WAYS[1:]}
    first = results["stock"][0]
    rate = {way: side["useful_tokens_per_second"] for way, side in sides.items()}
    return {
        "packed_over_stock": rate["packed"] / rate["stock"],
        "packed_over_padded": rate["packed"] / rate["padded"],
        "packed_over_stock_by_repeat": [
            a["seconds"] / b["seconds"] for a, b in zip(results["stock"], results["packed"], strict=True)
        ],
        "waste": {way: side["waste"] for way, side in sides.items()},
        "memory_ratio": memory_ratio(sides["packed"]["peak_gib"], sides["stock"]["peak_gib"]),
        # One by one: `max` would pass over a NaN.
        "ways_agree": all(value <= BODY_TOLERANCE for value in apart.values()),
        "gradient_relative_difference": apart,
        **{
            key: first[key]
            for key in (
                "device",
                "device_name",
                "scale",
                "layers",
                "rows",
                "batch_size",
                "max_tokens",
                "seed",
                "threads",
            )
        },
        "repeats": len(runs["stock"]),
        "allocator": allocator,
        "step": "decoder body on given image features, forward and backward with non-reentrant checkpointing under bf16 "
        "autocast; no lm_head, no optimiser",
        "ways": sides,
        "versions": versions(),
    }


def table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    ways = summary["ways"]
    what = (
        f"{summary['layers']} layer(s) at {summary['scale']} size, {summary['rows']} rows, {summary['batch_size']} in a step, "
        f"{summary['device_name']}, {summary['threads']} CPU thread(s)"
    )
    lines = [
        what,
        f"{'':30}" + "".join(f"{way:>14}" for way in WAYS),
        f"{'seconds':30}" + "".join(f"{ways[way]['seconds']:>14.2f}" for way in WAYS),
        f"{'useful tokens per second':30}" + "".join(f"{ways[way]['useful_tokens_per_second']:>14.1f}" for way in WAYS),
        f"{'waste':30}" + "".join(f"{ways[way]['waste']:>14.1%}" for way in WAYS),
        f"{'batches':30}" + "".join(f"{ways[way]['batches']:>14}" for way in WAYS),
        f"{'peak above the model, GiB':30}" + "".join(f"{ways[way]['peak_gib']:>14.3f}" for way in WAYS),
        f"packed over stock {summary['packed_over_stock']:.2f}, over padded {summary['packed_over_padded']:.2f}",
    ]
    if not summary["ways_agree"]:
        lines.append("THE WAYS DO NOT COMPUTE THE SAME: the ratios above mean nothing")
    return "\n".join(lines)


def _side(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = statistics.median(run["seconds"] for run in runs)
    tokens, positions = runs[0]["tokens"], runs[0]["positions"]
    return {
        "seconds": seconds,
        "all_seconds": [run["seconds"] for run in runs],
        "tokens": tokens,
        "useful_tokens_per_second": tokens / seconds,
        "waste": 1 - tokens / sum(positions),
        "batches": len(positions),
        "positions": positions,
        "peak_gib": statistics.median(run["peak_bytes"] for run in runs) / GIB,
        **{key: runs[0][key] for key in ("experts_implementation", "attention_implementation")},
    }


if __name__ == "__main__":
    sys.exit(main())
