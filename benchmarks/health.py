"""What the account of routing costs: steps of the decoder body with it and without, in turn in one process.

    python benchmarks/health.py --layers 2 --tokens 1024 --json --save

A step is that of `step.py` on our path. With the account every layer's losses are computed and its choices counted in the forward,
and after the step what is logged is worked out, as with `train.logging_steps: 1`, which is the most that it can cost. Medians;
with processor time beside, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import meters  # noqa: E402
import one_path  # noqa: E402
import ours  # noqa: E402
import torch  # noqa: E402
from random_aria import aria_config, random_batch  # noqa: E402

from aria_finetune.model.routing_losses import LossWeights  # noqa: E402
from aria_finetune.model.routing_watch import RoutingWatch  # noqa: E402
from aria_finetune.provenance import versions  # noqa: E402
from aria_finetune.trainer import RoutingAccount  # noqa: E402

HERE = Path(__file__).parent
LOSSES = {"health": LossWeights(), "health_and_losses": LossWeights(balance=1e-4, z=1e-5)}
WAYS = ("without", *LOSSES)


def main() -> int:
    """Measure, print."""
    arguments = parse(sys.argv[1:])
    summary = measure(arguments)
    for way in WAYS:
        side = summary[way]
        print(f"{way:20}{side['seconds']:>10.3f} s{side['processor_seconds']:>10.3f} s of processor time")
    print(f"overhead of health {summary['overhead']:.2%}, of its processor time {summary['processor_overhead']:.2%}")
    if arguments.save:
        name = f"health-{arguments.device}-{arguments.layers}l-{arguments.tokens}t.json"
        (HERE / "results" / name).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(summary))
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="What the account of routing costs.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each way (default 7)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small is for trying this program")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args(words)
    if min(arguments.layers, arguments.tokens, arguments.steps) < 1:
        parser.error("--layers, --tokens and --steps must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return arguments


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of all ways, and what health adds."""
    config = aria_config(arguments.scale, arguments.layers, images=False)
    model = ours.build(config, arguments.device, arguments.seed, one_path.PLAN)
    one_path.prepare_training(model, arguments.seed)
    job = one_path.Job(
        "ours", arguments.device, arguments.scale, arguments.layers, arguments.tokens, images=0, tile=490, steps=0,
        seed=arguments.seed,
    )  # fmt: skip
    plain = one_path.make_step(ours, model, job)
    watch = RoutingWatch(model, LossWeights())
    account = RoutingAccount(watch, lambda _: None, 8)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for number in range(arguments.steps + 1):
        batch = random_batch(config, arguments.tokens, 0, 490, arguments.device, arguments.seed + number)
        for way in WAYS:
            model.zero_grad(set_to_none=True)
            watch.losses = LOSSES.get(way, LossWeights())
            step = (
                partial(plain, batch)
                if way == "without"
                else partial(recorded, plain, batch, account, arguments.tokens)
            )
            times[way].append(meters.both_seconds(arguments.device, step))
    sides = {
        way: dict(
            zip(("seconds", "processor_seconds"), map(statistics.median, zip(*found[1:], strict=True)), strict=True)
        )
        for way, found in times.items()
    }
    without, health = sides["without"], sides["health"]
    return {
        "device": arguments.device,
        "device_name": meters.device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "scale": arguments.scale,
        "layers": arguments.layers,
        "tokens": arguments.tokens,
        "steps": arguments.steps,
        **sides,
        "overhead": health["seconds"] / without["seconds"] - 1,
        "processor_overhead": health["processor_seconds"] / without["processor_seconds"] - 1,
        "versions": versions(),
    }


def recorded(step: Callable[..., None], batch: Any, account: RoutingAccount, tokens: int) -> None:
    """A step with the account, and what is logged of it."""
    step(batch, account.watch.recording(None, tokens, 1.0))
    account.take(1, lambda _: None)


if __name__ == "__main__":
    sys.exit(main())
