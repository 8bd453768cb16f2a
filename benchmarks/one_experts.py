"""Measure one way of computing a layer's routed experts in this process; `experts.py` starts it.

The first step warms up and is the one whose memory, output and gradients are kept; the others are timed, each with tokens and
routing of its own. Knows nothing of the other ways.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import meters  # noqa: E402
import torch  # noqa: E402
from bitsandbytes.functional import dequantize_4bit  # noqa: E402
from random_aria import generator_for, random_nf4  # noqa: E402
from report import EVIDENCE_FILE, RESULT_FILE  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from stock import put_experts  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from transformers import AriaTextConfig  # noqa: E402
from transformers.models.aria.modeling_aria import AriaExperts  # noqa: E402

import aria_finetune.model.loading  # noqa: E402, F401 (registers our own ways with transformers)
from aria_finetune.model.grouped_experts import limit_experts  # noqa: E402
from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state  # noqa: E402


@dataclass(frozen=True)
class Job:
    """What to measure: `steps` timed steps of `tokens` tokens."""

    path: str
    implementation: str
    weights: str
    device: str
    hidden: int
    width: int
    experts: int
    top_k: int
    tokens: int
    routing: str
    exponent: float
    at_a_time: int | None
    checkpointing: bool
    steps: int
    seed: int


@dataclass(frozen=True)
class Inputs:
    """Tokens (tokens, hidden), indices and weights (tokens, top_k) of a step, and the gradient of its output."""

    tokens: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    upstream: torch.Tensor


@dataclass(frozen=True)
class Times:
    """Of one step; the backward has the forward that checkpointing repeats, `processor` is CPU time of all threads."""

    forward: float
    backward: float
    processor: float


def measure(job: Job) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What JSON can hold, and the evidence that ways do the same: output and gradients."""
    module = build(job)
    first = random_inputs(job, 0)
    with meters.peak_memory(job.device) as peak:
        output_TH = forward(module, first, job)
        output_TH.backward(first.upstream)
    evidence = {"output": output_TH, "tokens": gradient(first.tokens), "weights": gradient(first.weights)}
    kept = {name: tensor.detach().float().cpu() for name, tensor in evidence.items()}
    del output_TH, evidence

    times = [timed(module, random_inputs(job, number), job) for number in range(1, job.steps + 1)]
    return {
        **{f"{part}_seconds": [getattr(step, part) for step in times] for part in ("forward", "backward", "processor")},
        "peak_bytes": peak.bytes,
        "model_bytes": held_bytes(module),
        "expert_load": meters.expert_load({0: first.index}, job.experts),
        "threads": torch.get_num_threads(),
        "device_name": meters.device_name(job.device),
    }, kept


def build(job: Job) -> AriaExperts:
    """The experts with the weights of a seed, in NF4 or as the same in bf16."""
    config = AriaTextConfig(
        hidden_size=job.hidden,
        intermediate_size=job.width,
        moe_num_experts=job.experts,
        moe_topk=job.top_k,
        num_attention_heads=1,
    )
    config._experts_implementation = job.implementation  # noqa: SLF001 (as transformers' own loading sets it)
    with torch.device("meta"):
        module = AriaExperts(config)
    for name in EXPERT_TENSORS:
        generator = generator_for(job.device, job.seed, name)
        packed, state = random_nf4(getattr(module, name).shape, 1 / math.sqrt(job.hidden), generator)
        if job.weights == "nf4":
            put_experts(module, name, packed, state)
        else:
            setattr(module, name, nn.Parameter(dequantize_4bit(packed, state), requires_grad=False))
    if job.at_a_time is not None:
        limit_experts(module, job.at_a_time)
    return module.train()


def random_inputs(job: Job, number: int) -> Inputs:
    """Those of a step by its number, the same in every process."""
    generator = generator_for("cpu", job.seed, f"step {number}")
    tokens_TH, upstream_TH = (torch.randn(job.tokens, job.hidden, generator=generator) for _ in range(2))
    rank_E = torch.arange(1, job.experts + 1, dtype=torch.float32)
    share_E = rank_E ** (-job.exponent if job.routing == "zipf" else 0.0)
    index_TK = torch.multinomial(share_E.expand(job.tokens, -1), job.top_k, generator=generator)
    weights_TK = torch.randn(job.tokens, job.top_k, generator=generator).softmax(-1)
    tokens_TH, weights_TK, upstream_TH = (
        tensor.to(job.device, torch.bfloat16) for tensor in (tokens_TH, weights_TK, upstream_TH)
    )
    return Inputs(tokens_TH.requires_grad_(), index_TK.to(job.device), weights_TK.requires_grad_(), upstream_TH)


def forward(module: AriaExperts, given: Inputs, job: Job) -> torch.Tensor:
    """(tokens, hidden), as a layer of a training step has it."""
    batch = (given.tokens, given.index, given.weights)
    with torch.autocast(job.device, torch.bfloat16):
        output: torch.Tensor = checkpoint(module, *batch, use_reentrant=False) if job.checkpointing else module(*batch)
    return output


def timed(module: AriaExperts, given: Inputs, job: Job) -> Times:
    """A step, with the GPU idle before and after forward and backward."""
    outputs: list[torch.Tensor] = []
    began = time.process_time()
    forward_seconds = meters.seconds(job.device, lambda: outputs.append(forward(module, given, job)))
    backward_seconds = meters.seconds(job.device, lambda: outputs[0].backward(given.upstream))
    return Times(forward_seconds, backward_seconds, time.process_time() - began)


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """What the backward left there.

    Raises:
        RuntimeError: nothing.
    """
    if leaf.grad is None:
        raise RuntimeError("the backward gave an input no gradient")
    return leaf.grad


def held_bytes(module: AriaExperts) -> int:
    """Of the weights with all that their quantisation needs."""
    total = 0
    for name in EXPERT_TENSORS:
        packed = expert_state(module, name)
        if packed is None:
            total += getattr(module, name).nbytes
        else:
            data, state = packed
            total += data.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    return total


def main() -> None:
    """Arguments: the job as JSON, and the folder for the result."""
    job, folder = Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
    result, evidence = measure(job)
    save_file(evidence, folder / EVIDENCE_FILE)
    (folder / RESULT_FILE).write_text(json.dumps({**asdict(job), **result}), encoding="utf-8")


if __name__ == "__main__":
    main()
