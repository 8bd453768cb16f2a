"""Where the time of a step goes: by part of the model, and what was done there. Knows nothing of how a path computes.

`marked` gives every part of the model a name in the profiler; what autograd runs for an operation of the forward counts for the part
that the operation was in, and what gradient checkpointing runs again for the part it is run in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "part: "
PARTS = {
    "experts": "routed experts",
    "shared_experts": "shared experts",
    "router": "router",
    "self_attn": "attention",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
    "norm": "norms",
    "vision_tower": "images",
    "multi_modal_projector": "images",
}
"""By the last word of a module's name."""
OWN = {"_SharedInputs": "shared experts", "_SharedOutputs": "shared experts"}
"""By the start of the name of a function of ours that a block runs beside its modules, and not in one."""
IMAGES = "images"
HEAD = "loss"
OPTIMIZER = "optimizer"
REST = "rest"
DOINGS = {
    "dequantising": ("dequant", "nf4"),
    "products": ("mm", "linear", "matmul", "grouped", "conv", "gemm"),
    "softmax and scores": ("attention", "flash", "varlen", "softmax"),
}
"""Of an operation or a kernel, by what its name or that of one around it has in it, the first that fits; anything else is `other`:
elementwise work, sums, copies, casts."""
BACKWARD = "autograd::engine::evaluate_function"

Phases = dict[str, dict[str, float]]
"""Seconds by part of the model and by what was done."""


def phases(model: nn.Module, device: str, work: Callable[[], None]) -> Phases:
    """Do `work` once under the profiler; seconds of the GPU, or of the processor on a CPU."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with marked(model), profile(activities=activities, acc_events=True) as seen:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    return attribute(seen.events() or [], device)


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Forwards of the parts of a model have names in the profiler."""
    parts = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in PARTS}
    for name, module in parts.items():
        module.forward = mark(PARTS[name.rpartition(".")[2]])(module.forward)
    try:
        yield
    finally:
        for module in parts.values():
            del module.forward


def mark(part: str) -> record_function:
    """What a function or a block of code does counts for `part`, unless a narrower mark is inside it."""
    return record_function(f"{MARK}{part}")


def attribute(events: Any, device: str) -> Phases:
    """Seconds by part and doing.

    Args:
        events: of the profiler, each knowing the event around it.
        device: `cuda` counts kernels, `cpu` operations.
    """
    forward: dict[tuple[int, int], str] = {}
    for event in events:
        part = _around(event)
        if part is not None and event.sequence_nr >= 0:
            forward[event.thread, event.sequence_nr] = (
                part  # the last: before it are operations that autograd passes over
            )
    found: dict[str, Counter[str]] = {}
    for event in events:
        part = _part(event, forward)
        for words, seconds in _costs(event, device):
            found.setdefault(part, Counter())[_doing(words)] += seconds
    return {
        part: dict(counted.most_common()) for part, counted in sorted(found.items(), key=lambda one: -one[1].total())
    }


def _chain(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _around(event: Any) -> str | None:
    """The part that an event is marked with, through the nearest mark around it."""
    for one in _chain(event):
        own = next((part for start, part in OWN.items() if one.name.startswith(start)), None)
        if own is not None:
            return own
        if one.name.startswith(MARK):
            return str(one.name.removeprefix(MARK))
        if one.name.startswith(BACKWARD):
            return None
    return None


def _part(event: Any, forward: dict[tuple[int, int], str]) -> str:
    marked_as = _around(event)
    if marked_as is not None:
        return marked_as
    for one in _chain(event):
        origin = (one.fwd_thread, one.sequence_nr)
        if one.name.startswith(BACKWARD) and origin in forward:
            return forward[origin]
    return REST


def _costs(event: Any, device: str) -> Iterator[tuple[list[str], float]]:
    """Names from the narrowest to the mark, and seconds, of what an event itself took."""
    words = []
    for one in _chain(event):
        if one.name.startswith((MARK, BACKWARD)):
            break
        words.append(one.name)
    if device == "cuda":
        yield from (([kernel.name, *words], kernel.duration / 1e6) for kernel in event.kernels)
    elif event.self_cpu_time_total > 0:
        yield words, event.self_cpu_time_total / 1e6


def _doing(words: list[str]) -> str:
    lowered = [word.lower() for word in words]
    for doing, signs in DOINGS.items():
        if any(sign in word for word in lowered for sign in signs):
            return doing
    return "other"
