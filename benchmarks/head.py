"""The loss: labels scored by the lm_head, forward and backward, our way beside TRL's.

    python benchmarks/head.py --tokens 256 1024 --json --save

Each way runs in a process of its own, the two in turn, on the same random hidden states and the same random head of Aria's size in
bf16; the first run warms up and gives memory, the others are timed. TRL's way is the function that its trainer calls, with the
outputs that it asks for; on a CPU it scores every position, on a GPU those with a label. Before a ratio means anything both must
give the same loss and the same gradient. Knows nothing of how either computes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import meters
import ours
import stock
import torch
from report import memory_ratio
from safetensors.torch import load_file, save_file

from aria_finetune.model.head_loss import IGNORED
from aria_finetune.provenance import versions

HERE = Path(__file__).parent
WAYS = ("trl", "ours")
HIDDEN, VOCABULARY = 2560, 100_352
AGREEMENT = 0.02
"""By how much gradients may differ: TRL rounds logits and their gradients to bf16."""
MIB = 2**20


def main() -> int:
    """Measure, compare, print; 0 when both ways agree."""
    if sys.argv[1:2] == ["--one"]:
        measure(json.loads(sys.argv[2]), Path(sys.argv[3]))
        return 0
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            compare(tokens, share, arguments, Path(folder)) for tokens in arguments.tokens for share in arguments.shares
        ]
    summary = {
        "hidden": HIDDEN,
        "vocabulary": arguments.vocabulary,
        "device": arguments.device,
        "device_name": meters.device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "repeats": arguments.repeats,
        "steps": arguments.steps,
        "cases": cases,
        "ways_agree": all(case["gradients_differ_by"] < AGREEMENT for case in cases),
        "versions": versions(),
    }
    print(table(summary))
    if arguments.save:
        file = HERE / "results" / f"head-{arguments.device}.json"
        file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        print(f"written to {file}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(summary))
    return 0 if summary["ways_agree"] else 1


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Time and memory of the loss: ours beside TRL's.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], help="of the one row (default 256 1024)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.5, 1.0], help="of tokens with a label")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="rows of the head; less is for trying this")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each way (default 2)")
    parser.add_argument("--steps", type=int, default=3, help="timed runs in each process (default 3)")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args(words)
    if min(*arguments.tokens, arguments.vocabulary) < 2 or min(arguments.repeats, arguments.steps) < 1:
        parser.error("--tokens and --vocabulary must be at least 2, --repeats and --steps at least 1")
    if not all(0 < share <= 1 for share in arguments.shares):
        parser.error("--shares must be above 0, and at most 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return arguments


def compare(tokens: int, share: float, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both ways on one row, in turn."""
    job = {"tokens": tokens, "share": share, "vocabulary": arguments.vocabulary, "device": arguments.device}
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    gradients = {}
    for repeat in range(arguments.repeats):
        for way in WAYS:
            print(f"{tokens} tokens, {share:.0%}, {way}, process {repeat + 1}", file=sys.stderr, flush=True)
            words = json.dumps({**job, "way": way, "steps": arguments.steps})
            command = [sys.executable, str(HERE / "head.py"), "--one", words, str(folder)]
            done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{way}: the process ended with exit code {done.returncode}")
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            gradients[way] = load_file(folder / "gradient.safetensors")["gradient"].double()
    sides: dict[str, Any] = {
        way: {
            "seconds": statistics.median(second for run in found for second in run["seconds"]),
            "cpu_seconds": statistics.median(second for run in found for second in run["cpu_seconds"]),
            "peak_mib": statistics.median(run["peak_bytes"] for run in found) / MIB,
            "loss": found[0]["loss"],
        }
        for way, found in runs.items()
    }
    clock = "cpu_seconds" if arguments.device == "cpu" else "seconds"
    difference = (gradients["ours"] - gradients["trl"]).norm() / gradients["trl"].norm()
    return {
        "tokens": tokens,
        "labels": runs["ours"][0]["labels"],
        **sides,
        "times_as_fast": sides["trl"][clock] / sides["ours"][clock],
        "memory_ratio": memory_ratio(sides["ours"]["peak_mib"], sides["trl"]["peak_mib"]),
        "gradients_differ_by": float(difference),
    }


def measure(job: dict[str, Any], folder: Path) -> None:
    """One way in this process: prints what JSON can hold, and leaves the gradient in `folder`."""
    device, generator = job["device"], torch.Generator().manual_seed(0)
    head_VH = torch.empty(job["vocabulary"], HIDDEN, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    head_VH = head_VH.to(device)
    hidden_BSH = torch.randn(1, job["tokens"], HIDDEN, generator=generator).bfloat16().to(device).requires_grad_()
    labels_BS = torch.randint(0, job["vocabulary"], (1, job["tokens"]), generator=generator)
    labelled = round(job["share"] * (job["tokens"] - 1))
    labels_BS[0, 1 + torch.randperm(job["tokens"] - 1, generator=generator)[labelled:]] = IGNORED
    score = partial({"ours": ours, "trl": stock}[job["way"]].summed_loss, hidden_BSH, labels_BS.to(device), head_VH)
    losses: list[float] = []

    def step() -> None:
        hidden_BSH.grad = None
        loss = score() / max(labelled, 1)
        loss.backward()
        losses.append(loss.item())

    with meters.peak_memory(device) as peak:
        step()
    assert hidden_BSH.grad is not None  # noqa: S101 (a step leaves one)
    save_file({"gradient": hidden_BSH.grad.cpu()}, folder / "gradient.safetensors")
    times = [meters.both_seconds(device, step) for _ in range(job["steps"])]
    seconds, cpu_seconds = zip(*times, strict=True)
    found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak.bytes, "loss": losses[0]}
    print(json.dumps({**found, "labels": labelled}))


def table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [
        f"head of {summary['vocabulary']} x {HIDDEN} in bf16, {summary['device_name']}, {summary['threads']} CPU thread(s)",
        f"{'tokens':>8}{'labels':>8}{'TRL, s':>10}{'ours':>8}{'times':>8}{'TRL, MiB':>12}{'ours':>8}",
    ]
    clock = "cpu_seconds" if summary["device"] == "cpu" else "seconds"
    for case in summary["cases"]:
        trl_side, our_side = case["trl"], case["ours"]
        lines.append(
            f"{case['tokens']:>8}{case['labels']:>8}{trl_side[clock]:>10.3f}{our_side[clock]:>8.3f}"
            f"{case['times_as_fast']:>8.2f}{trl_side['peak_mib']:>12.0f}{our_side['peak_mib']:>8.0f}"
        )
    if not summary["ways_agree"]:
        lines.append("THE WAYS DO NOT COMPUTE THE SAME: the ratios above mean nothing")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
