"""Memory of this process: its peak, and what running out of it looks like. Knows nothing else."""

from __future__ import annotations

import os
import resource
import sys

GIB = 2**30
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def peak_memory_gib(device: str) -> float:
    """Largest memory so far in GiB: allocated on the GPU, or resident in the process where there is none."""
    if device == "cuda":
        import torch  # noqa: PLC0415 (more than a second that whoever only asks of the host need not wait)

        return torch.cuda.max_memory_allocated() / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the GPU's or the machine's memory is used up."""
    import torch  # noqa: PLC0415 (as above)

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The allocator of a CPU, and CUDA's libraries beside torch's allocator, have no exception type of their own.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def memory_gib(device: str) -> float:
    """All memory in GiB: of the GPU, or of the machine where there is none."""
    if device == "cuda":
        import torch  # noqa: PLC0415 (as above)

        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
