"""What is asked of the libraries before they are used: no telemetry, no network that nobody asked for, no chatter.

Imported by the commands that load a model, before they import anything that reads its environment. Knows nothing else.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOISY_LOGGERS = ("bitsandbytes", "transformers", "huggingface_hub", "accelerate", "trl", "peft")
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # the loader's workers are forked after its first use
    "WANDB_CONSOLE": "off",  # it would send what is printed as it was before secrets were taken out
    "THP_MEM_ALLOC_ENABLE": "1",  # huge pages for torch on a CPU: a page fault for 2 MiB instead of 4 KiB
}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (mallopt(3))."""
GIVEN_BACK_BYTES = 4 << 20
"""Blocks from this size on are given back to the system as soon as they are freed."""
KEPT_BYTES = 32 << 20
"""Of smaller blocks, what may lie free at the end of the heap."""


def names_local_model(path: str) -> bool:
    """Whether a recipe's `model.path` is here already: the packaged tiny Aria, or a folder."""
    return path == "tiny" or Path(path).expanduser().is_dir()


def give_back_large_blocks() -> None:
    """Keep glibc from holding on to freed blocks of many megabytes, such as unpacked weights on a CPU.

    It raises its threshold to the largest block freed, up to 32 MiB, and then cuts what it keeps into pieces that the next
    block does not fit: a gibibyte by the last of 28 layers. A step of two full-size layers takes 6% longer for it, with huge pages.
    To set this threshold fixes another at 128 KiB, above which the end of the heap goes back whenever something is freed, and
    then a megabyte that is taken and freed is cleared by the system each time; so that one is set as well. Elsewhere this does
    nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        allocator.mallopt(MMAP_THRESHOLD, GIVEN_BACK_BYTES)
        allocator.mallopt(TRIM_THRESHOLD, KEPT_BYTES)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and what stands on it without the garbage collector, and have it leave alone what that made.

    A million objects stay of it, and no garbage: to go over them again and again is a sixth of the time, and later a third of a
    second whenever a trainer asks for a collection. Where torch is there already nothing is changed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def prepare_libraries(*, debug: bool = False, offline: bool = False) -> None:
    """Set environment and log levels.

    Args:
        debug: show everything the libraries say.
        offline: keep the hub's clients from opening a connection, whatever the environment says. To be used when
            everything a command needs is on this machine; it has no effect once those libraries are imported.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    give_back_large_blocks()
    if offline:
        os.environ.update(dict.fromkeys(OFFLINE_SWITCHES, "1"))
    if debug:
        return
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 (after the environment is set)

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(transformers|peft|trl|accelerate|torch)\b.*")
