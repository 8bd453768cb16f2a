"""Memory of this process: its peak, and what running out of it looks like. Knows nothing else."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")
"""Writing 5 to it sets the highest resident size back to the present one (Linux, proc(5))."""
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def peak_memory_gib(device: str) -> float:
    """Largest memory so far in GiB: allocated on the GPU, or resident in the process where there is none."""
    if device == "cuda":
        import torch  # noqa: PLC0415 (more than a second that whoever only asks of the host need not wait)

        return torch.cuda.max_memory_allocated() / GIB
    return _highest_resident() / GIB


class MemoryMeter:
    """How far the memory of this process rises, from `begin` on, above what it holds when the meter is made.

    On a GPU that is what torch allocates. On Linux it is what no file backs: the highest resident size less the mapped
    files, so that code and mapped weights don't count. Elsewhere it is the resident size.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = anonymous_bytes()

    def begin(self) -> None:
        """What was mapped until now, to be read, counts no more: from here on mapped files only grow."""
        if self._device != "cuda":
            _reset.highest = _highest_resident()
            with suppress(OSError):  # without it the peak is at worst too high by the files that are closed by now
                PEAK_RESET.write_text("5", encoding="ascii")

    def peak_gib(self) -> float:
        """The peak since `begin`, in GiB."""
        if self._device == "cuda":
            return peak_memory_gib("cuda")
        now = _status()
        highest = now["VmHWM"] - now["RssFile"] if "RssFile" in now else _highest_resident()
        return max(highest - self._before, 0) / GIB


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs; where there is no /proc, its largest resident size."""
    return _status().get("RssAnon", _highest_resident())


def _status() -> dict[str, int]:
    """Bytes of every kind that Linux counts for this process; empty where there is no /proc."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(count) * 1024 for name, count, _ in fields}


@dataclass
class _Reset:
    """The highest resident size before it was set back, which `getrusage` forgets as well."""

    highest: int = 0


_reset = _Reset()


def _highest_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(_reset.highest, peak if sys.platform == "darwin" else peak * 1024)


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
