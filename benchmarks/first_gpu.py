"""What to run first where a GPU can be reached: is NF4 made there the NF4 of a CPU, and does the whole model train as planned?

    python benchmarks/first_gpu.py --device cuda --gpu-memory 24
    python benchmarks/first_gpu.py --device cpu --layers 2 --tokens 64

First one expert of each projection and one linear, at Aria's widths, are packed on the device and on the CPU and compared bit for
bit, packed, scales and unpacked. On a GPU the tests of the kernels run on it, and `gpu_kernels.py` times each beside torch's. Then the
routed experts of one layer are computed in every way and compared, forward and checkpointed backward, roughly timed. Then
`full_size.py` trains the model, a process for each number of tokens, within the memory that is allowed, and its peak is
held against the plan. Exit code 1 if anything of it is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import meters  # noqa: E402
from bitsandbytes.functional import QuantState, dequantize_4bit  # noqa: E402
from random_aria import aria_config, generator_for, random_nf4  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from transformers.models.aria.modeling_aria import AriaExperts  # noqa: E402

from aria_finetune.model.experts import LEAN  # noqa: E402
from aria_finetune.model.grouped_experts import GROUPED, limit_experts  # noqa: E402
from aria_finetune.model.nf4 import EXPERT_TENSORS, put_experts, quantize_experts, quantize_linear  # noqa: E402

EXPERTS = ((2, 2560, 3328), (2, 1664, 2560))
LINEAR = (3328, 2560)
HERE = Path(__file__).parent
FULL_SIZE = HERE / "full_size.py"
KERNEL_TESTS = ("tests/gpu_kernels", "tests/model/test_grouped_experts.py", "tests/model/test_host_experts.py")
WAYS = {"eager": None, "grouped_mm": None, LEAN: None, GROUPED: None, f"{GROUPED}, 8 at a time": 8}
"""How experts are computed: transformers' names, and how many experts are made dense at a time."""
ROUNDING = 1e-2
"""How far any way may be from eager in bf16, relatively."""
TIMED = {"cpu": 1, "cuda": 10}


def main() -> int:
    """Compare, train, print; 0 when all is well."""
    arguments = parse()
    packing = {"x".join(map(str, shape)): differences(shape, arguments.device) for shape in (*EXPERTS, LINEAR)}
    for shape, found in packing.items():
        print(f"NF4 of {shape} on {arguments.device}: {', '.join(found) or 'bit for bit that of the CPU'}", flush=True)
    kernels = run_kernels() if arguments.device == "cuda" else {}
    layers = [row for tokens in arguments.tokens for row in one_layer(arguments, tokens)]
    steps = [train(arguments, tokens) for tokens in arguments.tokens]
    summary = {
        "device": arguments.device,
        "nf4_differs_in": packing,
        "exit_codes": kernels,
        "one_layer": layers,
        "steps": steps,
    }
    print(json.dumps(summary))
    sound = all(step is not None and step["finite"] and step["all_gradients_nonzero"] for step in steps)
    sound = sound and all(by < ROUNDING for row in layers for by in row["differs_by"].values())
    return 0 if sound and not any(packing.values()) and not any(kernels.values()) else 1


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


def run_kernels() -> dict[str, int]:
    """Exit codes of the kernels' tests and of their timing, which print what they find."""
    commands = {
        "tests": ["-m", "pytest", "-q", *(str(HERE.parent / test) for test in KERNEL_TESTS)],
        "gpu_kernels.py": [str(HERE / "gpu_kernels.py"), "--device", "cuda", "--tokens", "2048", "8192", "--save"],
    }
    return {
        name: subprocess.run([sys.executable, *words], cwd=HERE.parent, check=False).returncode
        for name, words in commands.items()
    }


def one_layer(arguments: argparse.Namespace, tokens: int) -> Iterator[dict[str, Any]]:
    """The routed experts of a layer in every way: milliseconds, peak memory, and how far from eager."""
    sizes = aria_config(arguments.scale, 1, images=False).text_config
    due: list[torch.Tensor] = []
    for name, at_a_time in WAYS.items():
        sizes._experts_implementation = name.partition(",")[0]  # noqa: SLF001 (as transformers' own loading sets it)
        with torch.device("meta"):
            module = AriaExperts(sizes)
        for tensor in EXPERT_TENSORS:
            generator = generator_for(arguments.device, 0, tensor)
            packed = random_nf4(getattr(module, tensor).shape, 1 / math.sqrt(sizes.hidden_size), generator)
            put_experts(module, tensor, *packed)
        if at_a_time is not None:
            limit_experts(module, at_a_time)
        with meters.peak_memory(arguments.device) as peak:
            found = experts_step(module, arguments.device, tokens)
        due = due or found
        seconds = [
            meters.seconds(arguments.device, partial(experts_step, module, arguments.device, tokens))
            for _ in range(TIMED[arguments.device])
        ]
        row = {
            "tokens": tokens,
            "way": name,
            "milliseconds": round(statistics.median(seconds) * 1e3, 3),
            "peak_mib": round(peak.bytes / 2**20, 1),
            "differs_by": {
                part: float((one.float() - other.float()).norm() / other.float().norm())
                for part, one, other in zip(("output", "tokens", "routing"), found, due, strict=True)
            },
        }
        print(
            f"{tokens} tokens, one layer, {name}: {row['milliseconds']} ms, {row['peak_mib']} MiB, off by "
            + ", ".join(f"{part} {by:.1e}" for part, by in row["differs_by"].items()),
            flush=True,
        )
        yield row


def experts_step(module: AriaExperts, device: str, tokens: int) -> list[torch.Tensor]:
    """Output, and gradients of tokens and routing weights, of a checkpointed forward and backward on random tokens."""
    generator = generator_for(device, 0, "tokens")
    experts, top_k = module.num_experts, 6
    hidden_TH, upstream_TH = (
        torch.randn(tokens, module.hidden_dim, generator=generator, device=device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    top, index_TK = torch.randn(tokens, experts, generator=generator, device=device).topk(top_k)
    leaves = [hidden_TH.requires_grad_(), top.softmax(-1).to(torch.bfloat16).requires_grad_()]
    output_TH = checkpoint(module, leaves[0], index_TK, leaves[1], use_reentrant=False)
    output_TH.backward(upstream_TH)
    return [output_TH.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


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
