"""Compile every Triton kernel at Aria's size for the GPUs it is for, without one, and on a GPU also time it against torch.

    python benchmarks/gpu_kernels.py
    python benchmarks/gpu_kernels.py --device cuda --tokens 512 2048 8192 --save

The table of registers, spilled bytes and shared memory is read from the machine code by `cuobjdump`, which comes with Triton.
On a GPU each operation then runs on so many tokens, sent to 6 of 64 experts evenly or by a Zipf law, and is held against torch's and
timed beside it; products are timed in every way and every tiling, so that `matmul.chosen_way` and `chosen_tiling` can be
settled. Exit code 1 if a kernel spills or wants more shared memory than a GPU has, or if a result is further off than bf16 rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted is not compiled

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from random_aria import random_nf4
from torch.nn import functional

from aria_finetune.kernels import combine, gather, matmul, nf4, swiglu
from aria_finetune.kernels import outer as outer_sums
from aria_finetune.kernels.language import triton
from aria_finetune.kernels.sorting import Sorting, sort_by_expert

HIDDEN, WIDTH, EXPERTS, TOP_K, RANK = 2560, 1664, 64, 6, 8
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227}
"""The compute capabilities of A100, RTX 3090, RTX 4090 and H100, and what a program may have there of shared memory (CUDA C++
Programming Guide, technical specifications by compute capability)."""
BF16, FP32, INT32, BYTE = "*bf16", "*fp32", "*i32", "*u8"
POINTER_BYTES = 16
"""torch aligns what it allocates at least to this, and Triton compiles for it."""
TILINGS = {"few": matmul.FEW, "some": matmul.SOME, "many": matmul.MANY}
HOPPER_TILINGS = TILINGS | {"many": matmul.MANY_HOPPER}
PRODUCTS = {"gate_up": (HIDDEN, 2 * WIDTH), "down": (WIDTH, HIDDEN)}
ROUNDING = 1e-2
"""How far a result in bf16 may be from another way to it, relatively."""
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Specimen:
    """A kernel as it is launched for Aria: types of its arguments, what it is compiled for, how it is run."""

    name: str
    kernel: Any
    types: tuple[str, ...]
    constants: dict[str, Any]
    warps: int
    stages: int = 3
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Compiled:
    """What the machine code of a kernel takes: registers of a thread, bytes that it spills, bytes of shared memory."""

    name: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def specimens(capability: int) -> Iterator[Specimen]:
    """Every kernel, with every set of constants with which it runs in bf16 on a compute capability; products in fp32 too."""
    yield Specimen(
        "gather", gather.gather_kernel, (BF16, INT32, BF16, "i32"),
        {"HIDDEN": HIDDEN, "BLOCK": gather.BLOCK}, gather.WARPS,
    )  # fmt: skip
    for weighted in (True, False):
        yield Specimen(
            f"combine{' weighted' * weighted}", combine.combine_kernel, (BF16, INT32, FP32 if weighted else INT32, BF16),
            {"TOP_K": TOP_K, "HIDDEN": HIDDEN, "WEIGHTED": weighted, "BLOCK": combine.BLOCK}, combine.WARPS,
        )  # fmt: skip
    row = {"WIDTH": WIDTH, "BLOCK": swiglu.block(WIDTH)}
    yield Specimen("swiglu", swiglu.swiglu_kernel, (BF16, BF16), row, swiglu.WARPS)
    yield Specimen(
        "swiglu backward", swiglu.swiglu_backward_kernel, (BF16, BF16, FP32, INT32, FP32), row, swiglu.BACKWARD_WARPS
    )
    for name, (inner, outer) in PRODUCTS.items():
        yield Specimen(
            f"unpack {name}", nf4.unpack_kernel, (BYTE, BYTE, FP32, FP32, FP32, FP32, INT32, BF16),
            {"EXPERT_BLOCKS": inner * outer // nf4.BLOCK, "BLOCKS": nf4.BLOCKS}, nf4.WARPS, options=nf4.EXACT,
        )  # fmt: skip
    for name, (inner, outer) in PRODUCTS.items():
        for transposed in (False, True):
            for label, tiling in (HOPPER_TILINGS if capability >= 90 else TILINGS).items():
                sides = (outer, inner) if transposed else (inner, outer)
                yield Specimen(
                    f"matmul {name}{' transposed' * transposed}, {label}", matmul.matmul_kernel, (BF16, BF16, INT32, BF16),
                    matmul.constants(EXPERTS, *sides, transposed=transposed, tiling=tiling), tiling.warps, tiling.stages,
                )  # fmt: skip
    for transposed in (False, True):
        sides = (WIDTH, HIDDEN) if transposed else (HIDDEN, WIDTH)
        constants = matmul.constants(EXPERTS, *sides, transposed=transposed, tiling=matmul.PRECISE)
        yield Specimen(
            f"matmul fp32{' transposed' * transposed}", matmul.matmul_kernel, (FP32, FP32, INT32, FP32),
            constants, matmul.PRECISE.warps, matmul.PRECISE.stages,
        )  # fmt: skip
    yield from adapter_specimens(capability)


def adapter_specimens(capability: int) -> Iterator[Specimen]:
    """What adapters of experts add: products with a rank on either side, and the gradients of factors."""
    tilings = HOPPER_TILINGS if capability >= 90 else TILINGS
    for label, tiling in tilings.items():
        for name, sides, transposed in (
            ("down to a rank", (HIDDEN, RANK), True),
            ("up and added", (RANK, 2 * WIDTH), False),
        ):
            yield Specimen(
                f"matmul {name}, {label}", matmul.matmul_kernel, (BF16, BF16, INT32, BF16),
                matmul.constants(EXPERTS, *sides, transposed=transposed, add=not transposed, tiling=tiling),
                tiling.warps, tiling.stages,
            )  # fmt: skip
    for rank in (RANK, 64):
        for element, label in ((BF16, ""), (FP32, " fp32")):
            yield Specimen(
                f"outer{label}, rank {rank}", outer_sums.outer_kernel, (element, element, INT32, FP32),
                outer_sums.constants(rank, HIDDEN), outer_sums.WARPS, outer_sums.STAGES,
            )  # fmt: skip


def compile_for(specimen: Specimen, capability: int) -> Compiled:
    """Compile a kernel for a compute capability, with or without such a GPU."""
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415 (there is no Triton but for Linux)

    names = specimen.kernel.arg_names
    signature = dict(zip(names, specimen.types, strict=False))
    signature |= dict.fromkeys(specimen.constants, "constexpr")
    pointers = [place for place, name in enumerate(names) if signature[name].startswith("*")]
    source = triton.compiler.ASTSource(
        fn=specimen.kernel,
        signature=signature,
        constexprs=specimen.constants,
        attrs={(place,): [["tt.divisibility", POINTER_BYTES]] for place in pointers},
    )
    options = {"num_warps": specimen.warps, "num_stages": specimen.stages, **(specimen.options or {})}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = resources(built.asm["cubin"])
    return Compiled(specimen.name, capability, registers, spilled, built.metadata.shared)


def resources(machine_code: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of local memory, where spilled registers and stack frames are."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", told)[0]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def table(compiled: list[Compiled]) -> Iterator[str]:
    """A line for every kernel, a column for every compute capability."""
    capabilities = sorted({entry.capability for entry in compiled})
    yield f"{'registers / spilled bytes / shared KiB':38}" + "".join(f"{f'sm{each}':>16}" for each in capabilities)
    found = {(entry.name, entry.capability): entry for entry in compiled}
    for name in dict.fromkeys(entry.name for entry in compiled):
        entries = [found[name, capability] for capability in capabilities]
        cells = [f"{each.registers} / {each.spilled_bytes} / {each.shared_bytes / 1024:.0f}" for each in entries]
        yield f"{name:38}" + "".join(f"{cell:>16}" for cell in cells)


def faults(compiled: list[Compiled]) -> list[str]:
    """Kernels that spill, or that a GPU has no room for."""
    return [
        f"{entry.name} on sm{entry.capability}: {entry.spilled_bytes} bytes spilled, {entry.shared_bytes} shared"
        for entry in compiled
        if entry.spilled_bytes or entry.shared_bytes > SHARED_KIB[entry.capability] * 1024
    ]


@dataclass(frozen=True)
class Timing:
    """An operation done in one way: milliseconds in the median, and how far from fp32 it is (None: what others are held against)."""

    operation: str
    way: str
    tokens: int
    routing: str
    milliseconds: float
    error: float | None
    tflops: float | None = None


def timings(tokens: int, routing: str) -> Iterator[Timing]:
    """Every operation in every way, on a GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    index = routed(tokens, routing, generator)
    sorting = sort_by_expert(index, EXPERTS)
    row = partial(Timing, tokens=tokens, routing=routing)
    yield row("sort", "torch", milliseconds=median(partial(sort_by_expert, index, EXPERTS)), error=None)
    yield from rowwise(sorting, generator, row)
    for name, sides in PRODUCTS.items():
        packed, state = random_nf4(torch.Size([EXPERTS, *sides]), 1 / math.sqrt(HIDDEN), generator)
        yield from unpacking(f"unpack {name}", packed, state, row)
        weight = dequantize_4bit(packed, state)
        for transposed in (False, True):
            yield from products(f"matmul {name}{' transposed' * transposed}", weight, sorting, generator, row)
            weight = weight.transpose(1, 2)


def routed(tokens: int, routing: str, generator: torch.Generator) -> torch.Tensor:
    """(tokens, top_k) different experts each: all as likely, or by a Zipf law."""
    chances = torch.ones(EXPERTS, device="cuda")
    if routing == "zipf":
        chances /= torch.arange(1, EXPERTS + 1, device="cuda")
    return torch.multinomial(chances.expand(tokens, EXPERTS), TOP_K, generator=generator)


def rowwise(sorting: Sorting, generator: torch.Generator, row: Callable[..., Timing]) -> Iterator[Timing]:
    """Gather, SwiGLU and the weighted sum."""
    slots, places = sorting.slots, sorting.rows

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    tokens = random(len(slots) // TOP_K, HIDDEN)
    yield from compare("gather", lambda: tokens[slots // TOP_K], lambda: gather.gather(tokens, slots, TOP_K), row)
    rows, weights = random(len(slots), HIDDEN), torch.rand(len(slots), generator=generator, device="cuda")

    def combined() -> torch.Tensor:
        by_token = rows[places].view(-1, TOP_K, HIDDEN)
        return torch.einsum("tkh,tk->th", by_token, weights.view(-1, TOP_K).to(rows.dtype))

    yield from compare("combine", combined, lambda: combine.combine(rows, places, TOP_K, weights), row)
    gate_up, gradient = random(len(slots), 2 * WIDTH), random(len(slots), WIDTH)

    def activated() -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    yield from compare("swiglu", activated, lambda: swiglu.swiglu(gate_up), row)

    def backward() -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        weighted = gradient * weights[slots, None].to(gradient.dtype)
        sigmoid = torch.sigmoid(gate)
        first = weighted * up * sigmoid * (1 + gate * (1 - sigmoid))
        (gate * sigmoid * up * gradient).sum(-1)  # the routing weights' own
        return torch.cat([first, weighted * gate * sigmoid], dim=-1)

    scratch = gate_up.clone()

    def ours() -> torch.Tensor:
        return swiglu.swiglu_backward_(scratch, gradient, weights, slots)[0]

    due, found = backward(), ours().clone()
    yield row("swiglu backward", "torch", milliseconds=median(backward), error=None)
    # Its output is its next input: the values wander, the time does not.
    yield row("swiglu backward", "triton", milliseconds=median(ours), error=distance(found, due))


def unpacking(operation: str, packed: torch.Tensor, state: QuantState, row: Callable[..., Timing]) -> Iterator[Timing]:
    """All experts out of NF4: ours must be bitsandbytes' to the bit."""
    nested = state.state2
    stack = nf4.PackedStack(
        packed, state.absmax, nested.code, nested.absmax, state.offset, state.code, tuple(state.shape), torch.bfloat16
    )
    workspace = torch.empty(state.shape, device="cuda", dtype=torch.bfloat16)
    everyone = torch.arange(len(workspace), device="cuda", dtype=torch.int32)
    due = dequantize_4bit(packed, state)
    theirs = median(lambda: dequantize_4bit(packed, state, out=workspace))
    yield row(operation, "bitsandbytes", milliseconds=theirs, error=None)
    workspace.zero_()
    ours = median(lambda: nf4.unpack_experts(stack, everyone, workspace))
    error = 0.0 if torch.equal(workspace, due) else float("inf")
    yield row(operation, "triton", milliseconds=ours, error=error)


def products(
    operation: str, weight: torch.Tensor, sorting: Sorting, generator: torch.Generator, row: Callable[..., Timing]
) -> Iterator[Timing]:
    """A grouped product in every way. `weight` is (experts, in, out), a view of what is stored the other way round or not."""
    transposed = not weight.is_contiguous()
    stored = weight.transpose(1, 2) if transposed else weight
    inner, outer = weight.shape[1:]
    rows = torch.randn(len(sorting.slots), inner, generator=generator, device="cuda", dtype=torch.bfloat16)
    flops = 2 * len(rows) * inner * outer
    due = torch.empty(len(rows), outer, device="cuda")
    begin = 0
    for expert, end in zip(weight, sorting.ends.tolist(), strict=True):
        torch.mm(rows[begin:end].float(), expert.float(), out=due[begin:end])
        begin = end
    ways: dict[str, dict[str, Any]] = {"grouped_mm": {"way": "grouped_mm"}, "loop": {"way": "loop"}}
    for label, tiling in (TILINGS | {"many_hopper": matmul.MANY_HOPPER}).items():
        if shared_bytes(tiling) <= SHARED_KIB.get(capability(), 99) * 1024:
            ways[f"triton {label}"] = {"way": "triton", "tiling": tiling}
    for label, keywords in ways.items():
        work = partial(matmul.grouped_matmul, rows, stored, sorting.ends, transposed=transposed, **keywords)
        took = median(work)
        yield row(operation, label, milliseconds=took, error=distance(work(), due), tflops=round(flops / took / 1e9, 1))


def shared_bytes(tiling: matmul.Tiling) -> int:
    """What the buffers of a tiling take in bf16, at most."""
    return 2 * tiling.stages * tiling.depth * (tiling.rows + tiling.columns)


def capability() -> int:
    """Of the GPU, as in sm90."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def compare(
    operation: str, theirs: Callable[[], torch.Tensor], ours: Callable[[], torch.Tensor], row: Callable[..., Timing]
) -> Iterator[Timing]:
    """An operation in torch and in Triton."""
    yield row(operation, "torch", milliseconds=median(theirs), error=None)
    yield row(operation, "triton", milliseconds=median(ours), error=distance(ours(), theirs()))


def median(work: Callable[[], object]) -> float:
    """Milliseconds in the median, with the cache of the GPU emptied before each run."""
    took: float = triton.testing.do_bench(work, warmup=20, rep=100, return_mode="median")
    return round(took, 4)


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    """Relative, of all values together."""
    return float((found.float() - due.float()).norm() / due.float().norm())


def main() -> int:
    """Compile, print, and on a GPU time; 0 when all is sound."""
    arguments = parse()
    wanted = [capability()] if arguments.device == "cuda" and capability() in SHARED_KIB else list(SHARED_KIB)
    compiled = [compile_for(specimen, each) for each in wanted for specimen in specimens(each)]
    wrong = faults(compiled)
    if not arguments.json:
        print(*table(compiled), sep="\n", flush=True)
    timed: list[Timing] = []
    for tokens in arguments.tokens if arguments.device == "cuda" else []:
        for routing in ("uniform", "zipf"):
            for timing in timings(tokens, routing):
                timed.append(timing)
                if not arguments.json:
                    print(line(timing), flush=True)
    wrong += [
        f"{t.operation}, {t.way}: off by {t.error}" for t in timed if t.error is not None and not t.error < ROUNDING
    ]
    summary = {
        "device_name": torch.cuda.get_device_name() if arguments.device == "cuda" else "none",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "compiled": [asdict(entry) for entry in compiled],
        "timed": [asdict(entry) for entry in timed],
        "faults": wrong,
    }
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(*wrong, sep="\n", end="\n" if wrong else "")
    if arguments.save:
        (RESULTS / f"gpu_kernels-{arguments.device}.json").write_text(
            json.dumps(summary, indent=1) + "\n", encoding="utf-8"
        )
    return 1 if wrong else 0


def line(timing: Timing) -> str:
    """A timing for a person."""
    error = "" if timing.error is None else f"  off by {timing.error:.1e}"
    speed = "" if timing.tflops is None else f"{timing.tflops:8.1f} TFLOP/s"
    head = f"{timing.tokens:6} {timing.routing:8}{timing.operation:28}{timing.way:20}"
    return f"{head}{timing.milliseconds:9.3f} ms{speed}{error}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What Triton kernels take of a GPU, and on one how long they take.")
    parser.add_argument("--device", choices=["none", "cuda"], default="none")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--save", action="store_true", help=f"write it to {RESULTS.parent.name}/{RESULTS.name}")
    arguments = parser.parse_args()
    if triton is None:
        parser.error("there is no Triton to compile with; pip install triton")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
