"""Clock, memory and expert load of the process they run in. Know nothing of what is being measured."""

from __future__ import annotations

import ctypes
import gc
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from transformers.models.aria.modeling_aria import AriaTextTopKRouter

from aria_finetune.memory import anonymous_bytes

SAMPLING_SECONDS = 0.002


@dataclass
class Peak:
    """The most memory during a block, above what was there before it; `now` gives how much it is at this moment."""

    bytes: int = 0
    now: Callable[[], int] = int


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure a block: allocated bytes on a GPU; anonymous resident memory, sampled every 2 ms, on a CPU."""
    peak = Peak()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        peak.now = lambda: torch.cuda.memory_allocated() - before
        yield peak
        torch.cuda.synchronize()
        peak.bytes = torch.cuda.max_memory_allocated() - before
        return
    _return_freed_memory()
    before, done = anonymous_bytes(), threading.Event()

    def now() -> int:
        gc.collect()
        _return_freed_memory()
        return anonymous_bytes() - before

    peak.now = now

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            peak.bytes = max(peak.bytes, anonymous_bytes() - before)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()
        peak.bytes = max(peak.bytes, anonymous_bytes() - before)


@contextmanager
def allocated_on_cpu() -> Iterator[Peak]:
    """The most that torch's allocator has given out at a time during a block, of what is given out in it.

    Exact to the byte, where resident memory has what the heap keeps of freed tensors in it; without what libraries take for
    themselves. Every allocation is recorded, which takes time and memory of its own.
    """
    peak = Peak()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    todo = list(profiler.profiler.kineto_results.experimental_event_tree())
    while todo:
        event = todo.pop()
        todo += event.children
        kind, fields = event.typed
        if kind == _EventType.Allocation:
            peak.bytes = max(peak.bytes, fields.total_allocated)


def seconds(device: str, work: Callable[[], None]) -> float:
    """How long `work` takes, with the GPU idle before and after it."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def both_seconds(device: str, work: Callable[[], None]) -> tuple[float, float]:
    """How long `work` takes, and the processor's time in it: what counts where other processes run beside."""
    began = time.process_time()
    elapsed = seconds(device, work)
    return elapsed, time.process_time() - began


def device_name(device: str) -> str:
    """What the GPU is called; of a processor its own name, where /proc knows it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")


@contextmanager
def routing(model: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Collect what every router chose: by layer, (tokens, top_k) sorted expert indices on the CPU.

    Of the forward only: the recomputation under gradient checkpointing routes again and is left out.
    """
    chosen: dict[int, torch.Tensor] = {}

    def keep(layer: int, output: tuple[torch.Tensor, ...]) -> None:
        if layer not in chosen:
            chosen[layer] = output[2].detach().sort(-1).values.to("cpu", torch.int32)

    routers = [module for module in model.modules() if isinstance(module, AriaTextTopKRouter)]
    hooks = [
        router.register_forward_hook(lambda _module, _inputs, output, layer=layer: keep(layer, output))
        for layer, router in enumerate(routers)
    ]
    yield chosen
    for hook in hooks:
        hook.remove()


def expert_load(chosen: dict[int, torch.Tensor], experts: int) -> dict[str, float]:
    """Smallest, mean and largest share of a layer's token slots that an expert got, over all layers."""
    shares = torch.stack(
        [torch.bincount(index.flatten(), minlength=experts) / index.numel() for index in chosen.values()]
    )
    return {"min": shares.min().item(), "mean": shares.mean().item(), "max": shares.max().item()}


def _return_freed_memory() -> None:
    """Else a step could live on pages that building the model has freed, and not be seen to take them."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
