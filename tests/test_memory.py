"""The memory that a process takes at most, against allocations of a known size."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20
PROGRAM = """
import mmap, sys
from aria_finetune.memory import MemoryMeter
meter = MemoryMeter("cpu")
{first}
meter.begin()
{then}
print(meter.peak_gib() * 1024)
"""


def measured(first: str = "", then: str = "") -> float:
    """MiB, in a process of its own."""
    program = PROGRAM.format(first=first, then=then)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def mapped(path: Path) -> str:
    """Code that maps a file and touches all of it."""
    return f"file = open({str(path)!r}, 'rb'); seen = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(seen[::4096])"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(b"\1" * (200 * MIB))
    return tmp_path / "large"


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells mapped files apart")


@linux
def test_what_is_freed_again_counts() -> None:
    assert measured(then="b'1' * (100 << 20)") == pytest.approx(100, abs=8)


@linux
def test_what_stays_from_before_counts_and_what_went_does_not() -> None:
    assert measured(first="kept = b'1' * (50 << 20)", then="b'1' * (100 << 20)") == pytest.approx(150, abs=8)
    assert measured(first="b'1' * (300 << 20)", then="b'1' * (100 << 20)") == pytest.approx(100, abs=8)


@linux
def test_mapped_files_do_not_count(large: Path) -> None:
    assert measured(then=mapped(large) + "; b'1' * (60 << 20)") == pytest.approx(60, abs=8)
    assert measured(first=mapped(large) + "; seen.close()", then="b'1' * (60 << 20)") == pytest.approx(60, abs=8)


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep other blocks")


@linux
@glibc
def test_large_blocks_are_given_back_although_small_ones_lie_between_them() -> None:
    asked = "from aria_finetune.libraries import give_back_large_blocks; give_back_large_blocks()"
    held = (
        "blocks = [(bytearray(20 << 20), bytearray(100_000)) for _ in range(8)]; kept = [small for _, small in blocks]"
    )
    assert measured(first=f"{asked}\nfor _ in range(2): {held}; del blocks") < 20


@linux
@glibc
def test_smaller_blocks_are_used_again_without_asking_the_system() -> None:
    program = """
import resource
from aria_finetune.libraries import give_back_large_blocks
give_back_large_blocks()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(100): b"1" * (3 << 20)
print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 * (3 * MIB // mmap.PAGESIZE), "the pages of the first are not those of the others"


def test_a_page_is_a_page() -> None:
    assert mmap.PAGESIZE >= 4096, "else `mapped` touches too few"
