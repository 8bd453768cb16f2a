"""The routed experts of one layer alone: transformers' and bitsandbytes' way, the same expert by expert, and ours.

    python benchmarks/experts.py --device cpu --tokens 256 --json
    python benchmarks/experts.py --device cuda --tokens 8192 --routing zipf --dense --json --save

Each way runs in a process of its own, all in turn, on the same weights, tokens, routing and allocator settings. A step is
forward and backward under bf16 autocast, with non-reentrant gradient checkpointing unless `--plain` is given. `stock` is
`grouped_mm` on NF4 experts as `replace_parameter_4bit` leaves them, `eager` is transformers' loop on the same, `ours` is what
a recipe's `auto` takes on the device, or any name that transformers knows by then; `dense` is ours on the same weights in
bf16, of which nothing is dequantised. All must come to the same output and gradients; a difference beyond bf16 ends with exit
code 1. Knows nothing of how a way is measured (`one_experts.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import torch  # noqa: E402
from experts_report import summarise, table  # noqa: E402
from step import ALLOCATOR, run_in_turn, save  # noqa: E402
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS  # noqa: E402

import aria_finetune.model.loading  # noqa: E402, F401 (registers our own ways with transformers)
from aria_finetune.recipe import load_recipe  # noqa: E402

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "tiny.yaml"
SIZES = {"hidden": 2560, "width": 1664, "experts": 64, "top_k": 6}
"""Of the real Aria."""
COUNTS = (*SIZES, "tokens", "at_a_time", "repeats", "steps")


@dataclass(frozen=True)
class Way:
    """The name by which transformers knows how experts are computed, and how their weights are held."""

    implementation: str
    weights: str = "nf4"


def main() -> int:
    """Measure, compare, print; 0 when all ways agree."""
    arguments = parse(sys.argv[1:])
    allocator = {name: os.environ.get(name, value) for name, value in ALLOCATOR[arguments.device].items()}
    with tempfile.TemporaryDirectory() as folder:
        runs = run_in_turn("one_experts.py", jobs(arguments), arguments.repeats, allocator, Path(folder))
        summary = summarise(runs, allocator)
    print(table(summary))
    if arguments.save:
        save(summary, name_parts(arguments))
    if arguments.json:
        print(json.dumps(summary))
    return 0 if summary["ways_agree"] else 1


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Time and memory of one layer's routed experts: three ways, in turn.")
    parser.add_argument("--device", choices=sorted(ALLOCATOR), default="cpu")
    parser.add_argument("--tokens", type=int, default=256, help="of a step (default 256)")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size, help=f"Aria's {size} by default")
    parser.add_argument("--routing", choices=["uniform", "zipf"], default="uniform")
    parser.add_argument("--exponent", type=float, default=1.0, help="of the Zipf distribution of experts (default 1)")
    parser.add_argument("--ours", help="another way than a recipe's auto, by its name (moe.implementation)")
    parser.add_argument("--at-a-time", type=int, help="experts that ours makes dense together (moe.experts_at_a_time)")
    parser.add_argument("--plain", action="store_true", help="without gradient checkpointing")
    parser.add_argument("--dense", action="store_true", help="also ours on weights in bf16")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each way (default 2)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, tokens and routing")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args(words)
    for name in COUNTS:
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.top_k > arguments.experts:
        parser.error(f"--top-k {arguments.top_k} of {arguments.experts} experts")
    if arguments.hidden % 64 or arguments.width % 64:
        parser.error("--hidden and --width must be multiples of 64, as blocks of NF4 are")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    known = ["eager", *ALL_EXPERTS_FUNCTIONS.valid_keys()]
    if arguments.ours is not None and arguments.ours not in known:
        parser.error(f"--ours {arguments.ours}: transformers knows {', '.join(sorted(known))}")
    return arguments


def ways(arguments: argparse.Namespace) -> dict[str, Way]:
    """What is measured, by name, the stock path first."""
    recipe = load_recipe(RECIPE, ["moe.implementation=auto"])
    ours = arguments.ours or recipe.experts_implementation(arguments.device)
    found = {"stock": Way("grouped_mm"), "eager": Way("eager"), "ours": Way(ours)}
    return found | {"dense": Way(ours, "bf16")} if arguments.dense else found


def jobs(arguments: argparse.Namespace) -> dict[str, Mapping[str, Any]]:
    """What each process is told (`one_experts.Job`)."""
    shared = {
        name: getattr(arguments, name)
        for name in ("device", *SIZES, "tokens", "routing", "exponent", "at_a_time", "steps", "seed")
    }
    shared["checkpointing"] = not arguments.plain
    return {
        name: {"path": name, "implementation": way.implementation, "weights": way.weights, **shared}
        for name, way in ways(arguments).items()
    }


def name_parts(arguments: argparse.Namespace) -> list[str]:
    """Of the file of a result: what was measured, as far as it is not the default."""
    parts = ["experts", arguments.device, f"{arguments.tokens}t", arguments.routing]
    parts += [f"{getattr(arguments, name)}{name}" for name, size in SIZES.items() if getattr(arguments, name) != size]
    parts += [f"exponent{arguments.exponent:g}"] if arguments.exponent != 1 else []
    parts += [arguments.ours] if arguments.ours else []
    parts += [f"{arguments.at_a_time}atatime"] if arguments.at_a_time else []
    return parts + [name for name in ("plain", "dense") if getattr(arguments, name)]


if __name__ == "__main__":
    sys.exit(main())
