"""Memory of a training step by the tokens of its row, and how far it lies off a straight line.

    python benchmarks/long_rows.py --scale small --layers 2 --tokens 2048 4096 8192 16384 --json
    python benchmarks/long_rows.py --layers 1 --tokens 65536 --resident --save   # full size; minutes of attention on two cores

Each length is a process of `full_size.py` of its own, whose row is nearly all images with their features given, one text token for every
sixteen. The line, that of the least squares, goes through what torch's allocator has given out at most above the model
(`allocated_gib`). With `--resident` nothing of that is recorded, which would slow the step, and `peak_gib` is compared with the plan: it is
what no file backs, with the model, above the process with everything imported. What grows with the square of the tokens bends the
line: a mask of tokens by tokens at 16,384 is 0.25 GiB. Exit code 1 if a run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
IMAGE_TOKENS = 128
TEXT_SHARE = 16
RESIDENT = ("tokens", "images", "peak_gib", "planned_gib", "planned_off_by", "losses", "seconds_per_step")
ALLOCATED = ("tokens", "images", "allocated_gib")
"""What is kept of a run. Where allocations are recorded, its records are in memory too, and take time."""


def main() -> int:
    """Measure, fit, print."""
    arguments = parse()
    points: list[dict[str, Any]] = []
    for tokens in arguments.tokens:
        found = measure(arguments, tokens)
        if found is None:
            return 1
        points.append(found)
        print(f"{tokens:>7,} tokens: {told(found, resident=arguments.resident)}", flush=True)
    summary: dict[str, Any] = {
        "scale": arguments.scale,
        "layers": arguments.layers,
        **{key: points[0][key] for key in ("device", "device_name", "threads")},
        "points": [{key: point[key] for key in (RESIDENT if arguments.resident else ALLOCATED)} for point in points],
    }
    if not arguments.resident and len(points) > 2:
        summary |= line([point["tokens"] for point in points], [point["allocated_gib"] for point in points])
        print(f"{summary['kib_per_token']:.1f} KiB a token, at most {summary['off_the_line']:.1%} off a straight line")
    if arguments.save:
        name = f"long_rows-{summary['device']}-{arguments.scale}-{arguments.layers}l-{max(arguments.tokens)}t.json"
        (HERE / "results" / name).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(summary))
    return 0


def told(found: dict[str, Any], *, resident: bool) -> str:
    """What a run took, in words."""
    if not resident:
        return f"{found['allocated_gib']:.4f} GiB allocated"
    planned = f"{found['planned_gib']:.3f} planned ({found['planned_off_by']:+.1%})"
    return f"{found['peak_gib']:.3f} GiB, {planned}, {found['seconds_per_step']:.1f} s"


def measure(arguments: argparse.Namespace, tokens: int) -> dict[str, Any] | None:
    """What a run on a row of so many tokens says; None if it failed."""
    images = tokens * (TEXT_SHARE - 1) // TEXT_SHARE // IMAGE_TOKENS
    words = {
        "--layers": arguments.layers,
        "--scale": arguments.scale,
        "--device": arguments.device,
        "--tokens": tokens - images * IMAGE_TOKENS,
        "--images": images,
        "--steps": 1,
    }
    flags = ["--features", "--json", *([] if arguments.resident else ["--allocations"])]
    done = subprocess.run(
        [sys.executable, str(HERE / "full_size.py"), *flags, *(str(word) for pair in words.items() for word in pair)],
        env=os.environ,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"{tokens} tokens: exit code {done.returncode}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(tokens: Sequence[int], gib: Sequence[float]) -> dict[str, float]:
    """The line of least squares through amounts by tokens, and by what share of an amount the furthest lies off it."""
    slope, start = np.polyfit(tokens, gib, 1)
    reached = slope * np.array(tokens) + start
    return {
        "kib_per_token": float(slope) * 2**20,
        "start_gib": float(start),
        "off_the_line": float(np.abs(reached / np.array(gib) - 1).max()),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Memory of a training step by the tokens of its row.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192, 16_384])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--scale", choices=["full", "small"], default="full")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--resident", action="store_true", help="record no allocation; always so on a GPU")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args()
    arguments.resident |= arguments.device == "cuda"
    if min(arguments.tokens) < 2 * TEXT_SHARE:
        parser.error(f"--tokens must be at least {2 * TEXT_SHARE}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
