"""Triton where it is installed, and whether a tensor is for it.

Triton comes with CUDA builds of torch for Linux. Without it this imports all the same, and every operation runs in torch.
"""

from __future__ import annotations

from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
    tl = None

__all__ = ["EMULATED", "INTERPRETED", "for_triton", "kernel", "rounded", "tl", "triton"]

INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)
"""Whether kernels are Python that runs on CPU tensors (`TRITON_INTERPRET=1`)."""
EMULATED: Any = tl.constexpr(INTERPRETED) if triton is not None else INTERPRETED
"""The same for kernels to see: the interpreter rounds fp32 wrongly to bf16, and its products of bf16 are wrong (Triton 3.6, 3.7)."""


def kernel(function: Any) -> Any:
    """`triton.jit`, where there is Triton."""
    return function if triton is None else triton.jit(function)


def for_triton(tensor: torch.Tensor) -> bool:
    """Whether an operation on this tensor is one for Triton: on a GPU, or anywhere under the interpreter."""
    return triton is not None and (tensor.is_cuda or INTERPRETED)


@kernel
def rounded(value: tl.tensor, element_type: tl.dtype) -> tl.tensor:
    """fp32 in another type, to the nearest and to the even of two, under the interpreter too."""
    if EMULATED and element_type == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return value.to(element_type)
