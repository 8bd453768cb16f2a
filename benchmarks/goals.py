"""The goals for one H100, each with the figure that the other programs here measure for it, met or not.

    python benchmarks/goals.py --device cuda --save                    every run, then the table
    python benchmarks/goals.py --device cuda --save 8k                 one run, where time on the device is short
    python benchmarks/goals.py --device cpu --scale small --layers 1   the same programs on a CPU: no goal is met or not by that

A run is one command of `whole_step.py` or `full_size.py`. What it found is kept in `results/` with `--save`, and is taken from there
for runs that are not asked for. A run that fails leaves its goals unmet. Exit code 1 if one that was asked for failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
SHRUNK = 64
"""By how much rows are shorter at the small scale."""
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A command: its program, the tokens of its row, the memory that the GPU is taken to have, in GiB, and other words."""

    script: str
    tokens: int
    words: tuple[str, ...] = ()
    gpu_memory: float | None = None

    def command(self, arguments: argparse.Namespace) -> list[str]:
        """Its words, on the device and at the scale that is wanted."""
        tokens = max(self.tokens // (SHRUNK if arguments.scale == "small" else 1), 2)
        tokens = max(tokens, 2304) if "--images" in self.words else tokens
        words = [str(HERE / self.script), "--device", arguments.device, "--layers", str(arguments.layers), "--json"]
        words += ["--tokens", str(tokens), "--scale", arguments.scale, *self.words]
        words += ["--gpu-memory", str(self.gpu_memory)] if self.gpu_memory and arguments.device == "cuda" else []
        words += ["--repeats", str(arguments.repeats)] if self.script == "whole_step.py" else []
        return words + (["--save"] if arguments.save else [])

    def file(self, arguments: argparse.Namespace) -> Path:
        """Where the program keeps what it found at full size."""
        kind = self.script.removesuffix(".py")
        images = "0i" if kind == "full_size" else "8i980" if "--images" in self.words else ""
        parts = [kind, arguments.device, f"{arguments.layers}l", f"{self.tokens}t", images]
        return HERE / "results" / ("-".join(filter(None, parts)) + ".json")


RUNS = {
    "8k": Run("whole_step.py", 8192, ("--phases",)),
    "2k": Run("whole_step.py", 2048, ("--ways", "dense", "ours")),
    "32k": Run("whole_step.py", 32_768, ("--ways", "dense", "ours")),
    "images": Run("whole_step.py", 2304, ("--images", "8", "--tile", "980", "--ways", "ours", "cached")),
    "64k-in-80": Run("full_size.py", 65_536, gpu_memory=79.1),
    "16k-in-24": Run("full_size.py", 16_384, gpu_memory=23.5),
}
"""80 and 24 GB as cards of those names have them."""


@dataclass(frozen=True)
class Goal:
    """What should be reached: by which run, which figure of it, and its bound, the least or else the most that meets it."""

    what: str
    run: str
    figure: Callable[[Result], float]
    bound: float
    most: bool = False
    unit: str = "x"

    def met(self, figure: float) -> bool:
        """Whether a figure does; NaN does not."""
        return figure <= self.bound if self.most else figure >= self.bound


def _speedup(other: str) -> Callable[[Result], float]:
    return lambda result: float(result["against"][other]["speedup"])


GOALS = (
    Goal("tokens/s against the stock path at 8k", "8k", _speedup("stock"), 1.5),
    Goal("tokens/s against stock with eager experts at 8k", "8k", _speedup("eager"), 4.0),
    Goal("tokens/s against ours on bf16 experts at 2k", "2k", _speedup("dense"), 0.70),
    Goal("tokens/s against ours on bf16 experts at 8k", "8k", _speedup("dense"), 0.88),
    Goal("tokens/s against ours on bf16 experts at 32k", "32k", _speedup("dense"), 0.95),
    Goal(
        "peak memory against stock at 8k", "8k", lambda r: float(r["against"]["stock"]["memory_ratio"]), 0.70, most=True
    ),
    Goal(
        "use of the device at 8k (MFU), recompute counted",
        "8k",
        lambda r: float(r["ways"]["ours"]["use_of_device"]),
        0.40,
        unit="",
    ),
    Goal(
        "eight 980-px images a row, cached features against live",
        "images",
        lambda r: 1 / float(r["against"]["cached"]["speedup"]),
        1.7,
    ),
    Goal(
        "64k tokens in one step within 80 GB", "64k-in-80", lambda r: float(r["peak_gib"]), 79.1, most=True, unit=" GiB"
    ),
    Goal(
        "16k tokens in one step within 24 GB", "16k-in-24", lambda r: float(r["peak_gib"]), 23.5, most=True, unit=" GiB"
    ),
)


def main() -> int:
    """Run, print, and keep the table; 0 when no run failed."""
    arguments = parse(sys.argv[1:])
    found: dict[str, Result] = {}
    failed = []
    for name, run in RUNS.items():
        if name in arguments.runs:
            result = measure(run, arguments)
            if result is None:
                failed.append(name)
            else:
                found[name] = result
        elif run.file(arguments).exists() and arguments.scale == "full":
            found[name] = json.loads(run.file(arguments).read_text(encoding="utf-8"))
    rows = judge(found, failed, arguments.device)
    print(table(rows))
    summary = {"device": arguments.device, "layers": arguments.layers, "failed": failed, "goals": rows}
    summary["device_name"] = next((result["device_name"] for result in found.values()), None)
    if arguments.save:
        file = HERE / "results" / f"goals-{arguments.device}.json"
        file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        print(f"written to {file}", file=sys.stderr)
    print(json.dumps(summary))
    return 1 if failed else 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="The goals for one H100, each with its figure.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)} (default all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=1, help="processes of each way (default 1)")
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small is for trying this program")
    parser.add_argument("--save", action="store_true", help=f"keep what is found in {HERE.name}/results")
    arguments = parser.parse_args(words)
    unknown = set(arguments.runs) - set(RUNS)
    if unknown:
        parser.error(f"no run {', '.join(sorted(unknown))}: there are {', '.join(RUNS)}")
    arguments.runs = arguments.runs or list(RUNS)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return arguments


def measure(run: Run, arguments: argparse.Namespace) -> Result | None:
    """What the program's last line says; None where it failed, which its own words on stderr explain."""
    command = [sys.executable, *run.command(arguments)]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        print(done.stdout, f"exit code {done.returncode}", sep="\n", file=sys.stderr)
        return None
    print("\n".join(lines[:-1]), file=sys.stderr)
    result: Result = json.loads(lines[-1])
    return result


def judge(found: Mapping[str, Result], failed: Sequence[str], device: str) -> list[dict[str, Any]]:
    """Each goal with its figure, None where there is none, and whether it is met: `yes`, `no`, `failed`, `not run`, or `no GPU`."""
    rows = []
    for goal in GOALS:
        figure, state = None, "failed" if goal.run in failed else "not run"
        if goal.run in found:
            try:
                figure = goal.figure(found[goal.run])
                state = "no GPU" if device == "cpu" else "yes" if goal.met(figure) else "no"
            except KeyError:  # a way failed, or on a CPU there is no rate to hold the figure against
                state = "no GPU" if device == "cpu" else "failed"
        rows.append(
            {
                "goal": goal.what,
                "bound": goal.bound,
                "most": goal.most,
                "unit": goal.unit,
                "figure": figure,
                "met": state,
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The goals for people."""
    lines = [f"{'goal':58}{'bound':>12}{'figure':>12}  met"]
    for row in rows:
        bound = f"{'<=' if row['most'] else '>='} {row['bound']:g}{row['unit']}"
        figure = "" if row["figure"] is None else f"{row['figure']:.3g}{row['unit']}"
        lines.append(f"{row['goal']:58}{bound:>12}{figure:>12}  {row['met']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
