"""Every kernel compiles at Aria's size for the GPUs it is for, keeps to its registers, and fits; no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aria_finetune.kernels.language import triton

ROOT = Path(__file__).parents[2]
SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
REGISTERS = 255


@pytest.mark.skipif(triton is None, reason="there is no Triton for this system")
def test_kernels_compile_for_every_gpu_without_spills(tmp_path: Path, record_property: Callable[..., None]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_kernels.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    record_property("shown", done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    header, *lines = done.stdout.splitlines()
    capabilities = [int(word.removeprefix("sm")) for word in header.split() if word.startswith("sm")]
    assert capabilities == sorted(SHARED_BYTES)
    kernels = {line[:38].split(",")[0].strip() for line in lines}
    assert kernels == {
        "gather", "combine", "combine weighted", "swiglu", "swiglu backward", "unpack gate_up", "unpack down",
        "matmul gate_up", "matmul gate_up transposed", "matmul down", "matmul down transposed",
        "matmul fp32", "matmul fp32 transposed", "matmul down to a rank", "matmul up and added", "outer", "outer fp32",
    }  # fmt: skip
    for line in lines:
        cells = [cell.split("/") for cell in line[38:].replace(" / ", "/").split()]
        assert len(cells) == len(capabilities)
        for capability, (registers, spilled, shared_kib) in zip(capabilities, cells, strict=True):
            assert 0 < int(registers) <= REGISTERS, line
            assert int(spilled) == 0, line
            assert int(shared_kib) * 1024 <= SHARED_BYTES[capability], line


@pytest.mark.skipif(triton is None, reason="there is no Triton for this system")
def test_a_kernel_that_spills_is_told(tmp_path: Path) -> None:
    """A warp that has a row of 4096 columns to itself has not the registers for it."""
    code = (
        "import json, sys; sys.path.insert(0, 'benchmarks'); import gpu_kernels as kernels; from dataclasses import replace, asdict\n"
        "(specimen,) = [s for s in kernels.specimens(86) if s.name == 'swiglu backward']\n"
        "large = replace(specimen, warps=1, constants={'WIDTH': 4096, 'BLOCK': 4096})\n"
        "found = kernels.compile_for(large, 86)\n"
        "print(json.dumps([asdict(found), kernels.faults([found])]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    compiled, faults = json.loads(done.stdout)
    assert compiled["spilled_bytes"] > 0
    assert len(faults) == 1
