"""Merging at the real size: anonymous memory and time of `merge`, of its proof, and of `merge --to nf4`, in a process each.

    python benchmarks/merging.py --layers 4 --folder /somewhere/with/30/GB --json --save

The base is a checkpoint of random bf16 weights with Aria's dimensions (2.2 GB and 1.8 GB a layer), the adapter one of random values on attention, routers
and routed experts. Both are made first and removed at the end. Anonymous memory is what no file backs, all of the process, sampled
every 2 ms: pages of a mapped checkpoint, which the system takes back whenever it wants, are not in it. The merged weights must be
whole, and the proof must find that they say what base and adapter say, else the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import make_checkpoint  # noqa: E402
import meters  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig  # noqa: E402
from random_aria import generator_for  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from aria_finetune.adapter.merge import DOING, merge  # noqa: E402
from aria_finetune.adapter.mixture import open_mixture  # noqa: E402
from aria_finetune.adapter.proof import prove  # noqa: E402
from aria_finetune.adapter.saving import ADAPTER_WEIGHTS  # noqa: E402
from aria_finetune.memory import anonymous_bytes  # noqa: E402
from aria_finetune.model.base_identity import identity_of, write_identity  # noqa: E402
from aria_finetune.model.hub_layout import HubCheckpoint, disk_name, open_checkpoint  # noqa: E402
from aria_finetune.model.lora import PREFIX  # noqa: E402
from aria_finetune.model.targets import PLACES, Target, linear_pattern, parameter_names  # noqa: E402

HERE = Path(__file__).parent
TARGETS: tuple[Target, ...] = ("attention", "router", "experts")
WAYS = ("merge", "proof", "nf4")
RANK, ALPHA = 8, 32
STRENGTH = 1e-3
"""Standard deviation of B: changes of about a twentieth of a weight, well above what bf16 can hold."""
GB = 1e9


def main() -> int:
    """Make, measure, remove, print."""
    arguments = parse(sys.argv[1:])
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="merging-") as folder:
        summary = run(Path(folder), arguments)
    for way in arguments.ways:
        side = summary[way]
        print(f"{way:6}{side['seconds']:>8.1f} s, at most {side['peak_bytes'] / GB:.3f} GB of anonymous memory")
    if "proof" in summary:
        print(f"verdict {summary['proof']['verdict']}, KL {summary['proof']['kl']:.2e} nats")
    if arguments.save:
        file = HERE / "results" / f"merging-cpu-{arguments.layers}l.json"
        file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(summary))
    return 0 if summary.get("proof", {}).get("verdict", "ok") == "ok" else 1


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Memory and time of a merge.")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers; Aria has 28")
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small is for trying this program")
    parser.add_argument("--folder", type=Path, help="where files are made (default: the temporary folder)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="only these; proof needs merge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.layers < 1:
        parser.error("--layers must be at least 1")
    if "proof" in arguments.ways and "merge" not in arguments.ways:
        parser.error("--ways proof looks at what merge has made")
    return arguments


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All ways, each in a process of its own."""
    (folder / "base").mkdir()
    make_checkpoint.write(folder / "base", arguments.scale, arguments.layers, arguments.seed)
    base = open_checkpoint(str(folder / "base"))
    weights = make_adapter(base, folder / "adapter", arguments.layers, arguments.seed)
    size = sum((folder / "base" / shard).stat().st_size for shard in base.shards)
    summary: dict[str, Any] = {
        "device": "cpu",
        "device_name": meters.device_name("cpu"),
        "threads": torch.get_num_threads(),
        "layers": arguments.layers,
        "scale": arguments.scale,
        "targets": list(TARGETS),
        "rank": RANK,
        "checkpoint_bytes": size,
        "largest_tensor_bytes": max(2 * torch.Size(t.shape).numel() for t in base.stored.values()),
        "adapter_weights": weights,
    }
    for way in arguments.ways:
        command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ, check=True)
        summary[way] = json.loads(done.stdout.splitlines()[-1])
        if way == "nf4":
            shutil.rmtree(folder / "nf4")
    return summary


def make_adapter(base: HubCheckpoint, folder: Path, layers: int, seed: int) -> int:
    """Write an adapter as training would leave it; returns how many weights it has."""
    tensors: dict[str, torch.Tensor] = {}
    for target in TARGETS:
        place = PLACES[target]
        parameters = [(f"{linear}.weight", linear) for linear in place.linears] + list(place.parameters.items())
        for layer in range(layers):
            start = place.layer.format(layer=layer)
            for weight, pair in parameters:
                *stack, rows, columns = base.stored[disk_name(f"{start}.{weight}")].shape
                # A stack of experts lies as (experts, in, out), a linear as (out, in).
                count, (into, out) = (stack[0], (rows, columns)) if stack else (1, (columns, rows))
                for matrix, shape, deviation in (
                    ("A", (RANK * count, into), into**-0.5),
                    ("B", (out, RANK * count), STRENGTH),
                ):
                    name = f"{PREFIX}{start}.{pair}.lora_{matrix}.weight"
                    tensors[name] = torch.randn(shape, generator=generator_for("cpu", seed, name)) * deviation
    folder.mkdir()
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=linear_pattern(TARGETS),
        target_parameters=parameter_names(TARGETS),
        base_model_name_or_path=str(base.folder),
        task_type="CAUSAL_LM",
    )
    config.save_pretrained(str(folder))
    write_identity(folder, identity_of(base))
    return sum(tensor.numel() for tensor in tensors.values())


def measure(way: str, folder: Path) -> dict[str, Any]:
    """One way in this process."""
    before, began = anonymous_bytes(), time.perf_counter()
    found: dict[str, Any] = {}
    with meters.peak_memory("cpu") as peak:
        if way == "proof":
            base, merged = (open_checkpoint(str(folder / name)) for name in ("base", "merged"))
            proof = prove(open_mixture([(folder / "adapter", 1.0)]), base, merged)
            found = {
                "verdict": proof.as_dict()["verdict"],
                "kl": proof.original.kl,
                "logit_max": proof.original.logit_max,
                "agreement": proof.original.agreement,
                "kl_on_nf4": proof.nf4.kl,
                "kl_of_the_base": proof.effect.kl,
                "tokens": sum(proof.rows.values()),
            }
        else:
            output = folder / ("merged" if way == "merge" else "nf4")
            tensors = merge(folder / "adapter", output, to_nf4=way == "nf4")
            found = {"tensors": len(tensors), "kept": min(tensor.kept for tensor in tensors)}
            left = output.with_name(f".{output.name}.{DOING}")
            if left.exists():
                raise RuntimeError(f"{left} was left")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_bytes": before + peak.bytes, "imported_bytes": before, **found}


if __name__ == "__main__":
    sys.exit(main())
