"""The ruler: one training step of Aria's decoder body on the stock path beside ours.

    python benchmarks/step.py --device cpu --layers 1 --tokens 256 --json

Each path runs in a process of its own, the two in turn (stock, ours, stock, ours, ...), on the same weights, inputs,
adapters and allocator settings; times are medians over all processes. Before a ratio means anything the two must
do the same, so gradients, routing and the expert block are compared, and a difference beyond bf16 ends with exit
code 1. Knows nothing of how a path is built (`stock.py`, `ours.py`) or measured (`one_path.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from report import summarise, table

HERE = Path(__file__).parent
PATHS = ("stock", "ours")
IMAGE_TOKENS = {490: 128, 980: 256}
"""By the side of an image in pixels."""
ALLOCATOR = {
    "cpu": {"THP_MEM_ALLOC_ENABLE": "1"},
    "cuda": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
}
"""Given to both paths, where the caller has not set another. Large pages alone make the stock path 1.2 to 1.7 times
as fast on a CPU."""


def main() -> int:
    """Measure, compare, print; 0 when the paths agree."""
    arguments = parse(sys.argv[1:])
    allocator = {name: os.environ.get(name, value) for name, value in ALLOCATOR[arguments.device].items()}
    wanted = ("device", "scale", "layers", "tokens", "images", "tile", "steps", "seed", "phases")
    job = {name: getattr(arguments, name) for name in wanted}
    jobs = {path: {"path": path, **job} for path in PATHS}
    with tempfile.TemporaryDirectory() as folder:
        runs = run_in_turn("one_path.py", jobs, arguments.repeats, allocator, Path(folder))
        summary = summarise(runs["stock"], runs["ours"], allocator)
    print(table(summary))
    if arguments.save:
        save(summary, name_parts(arguments))
    if arguments.json:
        print(json.dumps(summary))
    return 0 if summary["paths_agree"] else 1


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Time and memory of one training step: the stock path beside ours.")
    parser.add_argument("--device", choices=sorted(ALLOCATOR), default="cpu")
    parser.add_argument("--layers", type=int, default=1, help="decoder layers; Aria has 28 (default 1)")
    parser.add_argument("--tokens", type=int, default=256, help="in the one row of a step (default 256)")
    parser.add_argument("--images", type=int, default=0, help="at the start of the row (default none)")
    parser.add_argument(
        "--tile",
        type=int,
        choices=sorted(IMAGE_TOKENS),
        default=980,
        help="side of an image in pixels: 128 tokens at 490, 256 at 980 (default 980)",
    )
    parser.add_argument("--repeats", type=int, default=2, help="processes of each path (default 2)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, adapters and inputs")
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small is for trying this program")
    parser.add_argument(
        "--phases", action="store_true", help="one more step of each path under the profiler: what took how long"
    )
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args(words)
    for name in ("layers", "tokens", "repeats", "steps"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    image_tokens = arguments.images * IMAGE_TOKENS[arguments.tile]
    if arguments.images < 0 or arguments.tokens < image_tokens:
        parser.error(
            f"--images {arguments.images} --tile {arguments.tile} takes {image_tokens} tokens: --tokens must be at least that"
        )
    return arguments


def name_parts(arguments: argparse.Namespace) -> list[str]:
    """What the name of a result says of how it was measured."""
    parts = ["step", arguments.device, f"{arguments.layers}l", f"{arguments.tokens}t"]
    parts += [f"{arguments.images}i{arguments.tile}"] if arguments.images else []
    return parts + ([arguments.scale] if arguments.scale != "full" else [])


def run_in_turn(
    script: str, jobs: Mapping[str, Mapping[str, Any]], repeats: int, allocator: Mapping[str, str], folder: Path
) -> dict[str, list[Path]]:
    """Processes of `script`, one for each job, over and over; by the names of jobs, the folders of what they found."""
    runs: dict[str, list[Path]] = {name: [] for name in jobs}
    for repeat in range(repeats):
        for name, job in jobs.items():
            print(f"{name}, process {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
            once = {"phases": job["phases"] and repeat == 0} if "phases" in job else {}
            runs[name].append(run_path(script, {**job, **once}, allocator, folder / f"{name}-{repeat}"))
    return runs


def run_path(script: str, job: Mapping[str, Any], allocator: Mapping[str, str], folder: Path) -> Path:
    """A process of `script` with the job and the folder for what it finds.

    Raises:
        SystemExit: the process failed, with its words on stderr.
    """
    folder.mkdir()
    command = [sys.executable, str(HERE / script), json.dumps(job), str(folder)]
    done = subprocess.run(command, env=os.environ | allocator, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{job['path']}: the process ended with exit code {done.returncode}")
    return folder


def save(summary: dict[str, Any], parts: Sequence[str]) -> None:
    """Write the summary to the results folder, under a name of parts that say what was measured."""
    file = HERE / "results" / f"{'-'.join(parts)}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
