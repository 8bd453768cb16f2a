"""Peak memory of this process. Knows nothing else."""

from __future__ import annotations

import resource
import sys

import torch

GIB = 2**30


def peak_memory_gib(device: str) -> float:
    """Largest memory so far in GiB: allocated on the GPU, or resident in the process where there is none."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB
