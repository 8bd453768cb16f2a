"""What to run first where a GPU can be reached: is NF4 made there the NF4 of a CPU, and does the whole model train as planned?

    python benchmarks/first_gpu.py --device cuda --gpu-memory 24
    python benchmarks/first_gpu.py --device cpu --layers 2 --tokens 64

First one expert of each projection and one linear, at Aria's widths, are packed on the device and on the CPU and compared bit for
bit, packed, scales and unpacked. Then `full_size.py` trains the model, a process for each number of tokens, within the memory
that is allowed, and its peak is held against the plan. Exit code 1 if anything of it is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

from bitsandbytes.functional import QuantState, dequantize_4bit  # noqa: E402

from aria_finetune.model.nf4 import quantize_experts, quantize_linear  # noqa: E402

EXPERTS = ((2, 2560, 3328), (2, 1664, 2560))
LINEAR = (3328, 2560)
FULL_SIZE = Path(__file__).with_name("full_size.py")


def main() -> int:
    """Compare, train, print; 0 when all is well."""
    arguments = parse()
    packing = {"x".join(map(str, shape)): differences(shape, arguments.device) for shape in (*EXPERTS, LINEAR)}
    for shape, found in packing.items():
        print(f"NF4 of {shape} on {arguments.device}: {', '.join(found) or 'bit for bit that of the CPU'}", flush=True)
    steps = [train(arguments, tokens) for tokens in arguments.tokens]
    summary = {"device": arguments.device, "nf4_differs_in": packing, "steps": steps}
    print(json.dumps(summary))
    sound = all(step is not None and step["finite"] and step["all_gradients_nonzero"] for step in steps)
    return 0 if sound and not any(packing.values()) else 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The first checks on a GPU.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--gpu-memory", type=float, help="GiB that the GPU is taken to have")
    parser.add_argument("--scale", choices=["full", "small"], default="full")
    parser.add_argument("--save", action="store_true", help="keep what full_size.py prints in results/")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return arguments


def differences(shape: tuple[int, ...], device: str) -> list[str]:
    """What of a packed weight is not the same on the device as on the CPU."""
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    quantise = quantize_experts if len(shape) == 3 else quantize_linear
    ours, theirs = (tensors(*quantise(weight.to(place))) for place in (device, "cpu"))
    return [name for name, value in theirs.items() if not torch.equal(ours[name].cpu(), value)]


def tensors(packed: torch.Tensor, state: QuantState) -> dict[str, torch.Tensor]:
    """Everything that a packed weight is made of, and what it stands for."""
    return {
        "packed bytes": packed,
        "scales": state.absmax,
        "scales of scales": state.state2.absmax,
        "offset": state.offset,
        "values": dequantize_4bit(packed, state),
    }


def train(arguments: argparse.Namespace, tokens: int) -> dict[str, Any] | None:
    """What `full_size.py` says of a step of so many tokens; None where it failed."""
    command = [sys.executable, str(FULL_SIZE), "--layers", str(arguments.layers), "--tokens", str(tokens), "--json"]
    command += ["--device", arguments.device, "--scale", arguments.scale]
    command += ["--gpu-memory", str(arguments.gpu_memory)] if arguments.gpu_memory else []
    command += ["--save"] if arguments.save else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        print(f"{tokens} tokens: full_size.py failed with exit code {done.returncode}", flush=True)
        return None
    found: dict[str, Any] = json.loads(lines[-1])
    print(
        f"{tokens} tokens: {found['seconds_per_step']} s a step, peak {found['peak_gib']} GiB, {found['planned_gib']} planned",
        flush=True,
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
