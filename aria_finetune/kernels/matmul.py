"""Rows that are sorted by expert, each times the weight of its expert; the device alone knows where an expert begins.

There are three ways, and which is fastest where is for a GPU to say (`benchmarks/gpu_kernels.py`):

- `grouped_mm`, torch's own: a fast kernel for bf16 on compute capability 9.0 and 10.0; elsewhere it waits for the device;
- `triton`, the kernel below, for all others that Triton compiles for;
- `loop`, a product of cuBLAS for each expert, after waiting for the device.

Neither order of summation nor choice of way depends on values or on timing, so that runs can be repeated to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional

from aria_finetune.kernels.language import EMULATED, for_triton, kernel, rounded, tl, triton

Way = Literal["grouped_mm", "triton", "loop"]
FAST_GROUPED_MM = (9, 10)
"""Major compute capabilities for which torch has a kernel; elsewhere it copies offsets to the host and loops."""
GROUPED_MM_ALIGNMENT = 16
"""Of strides, in bytes, where that kernel is to run."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The part of a product that a program makes: so many rows and columns, so many inner places at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


FEW = Tiling(16, 128, 64, 4, 4)
SOME = Tiling(64, 128, 64, 4, 3)
MANY = Tiling(128, 128, 32, 4, 4)
MANY_HOPPER = Tiling(128, 128, 64, 8, 3)
PRECISE = Tiling(32, 64, 32, 4, 2)
"""For fp32, which is multiplied without tensor cores."""
ROWS_TOGETHER = 8
"""Tiles of rows whose programs run side by side, so that what they read is still in the cache."""


def grouped_matmul(
    rows_SI: torch.Tensor,
    weight_EIO: torch.Tensor,
    end_E: torch.Tensor,
    *,
    transposed: bool = False,
    output_SO: torch.Tensor | None = None,
    add: bool = False,
    way: Way | None = None,
    tiling: Tiling | None = None,
) -> torch.Tensor:
    """`rows_SI[begin:end] @ weight_EIO[expert]` for every expert.

    Args:
        rows_SI: (rows, in), contiguous, sorted by expert.
        weight_EIO: (experts, in, out), contiguous, of the same dtype; with `transposed` (experts, out, in), of which the
            transpose is taken.
        end_E: int32 (experts,), the row behind the last of each expert; that of the last expert is the number of rows.
        transposed: whether weights are (out, in).
        output_SO: where the result goes, contiguous; new memory, if it is left out.
        add: whether it is added to what is there, in fp32; never by torch's `grouped_mm`, which would take memory for it.
        way: how; the one for this dtype and device, if it is left out.
        tiling: for the way `triton`; one for so many rows on this device, if it is left out.

    Returns:
        (rows, out) in the same dtype, sums in fp32.
    """
    outer = weight_EIO.shape[1] if transposed else weight_EIO.shape[2]
    way = way or chosen_way(rows_SI, weight_EIO, add=add)
    if add and (output_SO is None or way == "grouped_mm"):
        raise ValueError("there is nothing to add to" if output_SO is None else "grouped_mm adds nothing")
    if way == "grouped_mm" and len(rows_SI):
        weight = weight_EIO.transpose(1, 2) if transposed else weight_EIO
        product_SO = functional.grouped_mm(rows_SI, weight, offs=end_E)
        return product_SO if output_SO is None else output_SO.copy_(product_SO)
    if output_SO is None:
        output_SO = rows_SI.new_empty(len(rows_SI), outer)
    if way == "triton" and len(rows_SI):
        chosen = tiling or chosen_tiling(rows_SI, len(weight_EIO))
        _launch(rows_SI, weight_EIO, end_E, output_SO, transposed=transposed, add=add, tiling=chosen)
    elif way == "loop":
        begin = 0
        for weight, end in zip(weight_EIO, end_E.tolist(), strict=True):
            if end > begin:
                _multiply(rows_SI[begin:end], weight.T if transposed else weight, output_SO[begin:end], add=add)
            begin = end
    return output_SO


def _multiply(rows_NI: torch.Tensor, weight_IO: torch.Tensor, output_NO: torch.Tensor, *, add: bool) -> None:
    if add:
        output_NO.addmm_(rows_NI, weight_IO)
    else:
        torch.mm(rows_NI, weight_IO, out=output_NO)


def chosen_way(rows_SI: torch.Tensor, weight_EIO: torch.Tensor, *, add: bool = False) -> Way:
    """The way for a product of this dtype on this device."""
    if rows_SI.is_cuda and rows_SI.dtype == torch.bfloat16 and not add:
        major, _ = torch.cuda.get_device_capability(rows_SI.device)
        strides = (weight_EIO.shape[1], weight_EIO.shape[2])
        aligned = all(stride * rows_SI.itemsize % GROUPED_MM_ALIGNMENT == 0 for stride in strides)
        if major in FAST_GROUPED_MM and aligned:
            return "grouped_mm"
    return "triton" if for_triton(rows_SI) else "loop"


def chosen_tiling(rows_SI: torch.Tensor, experts: int) -> Tiling:
    """A tiling for as many rows as an expert has in the mean; all of them were checked to compile without spills."""
    mean = len(rows_SI) / experts
    if rows_SI.itemsize > 2:
        return PRECISE
    if mean <= FEW.rows:
        return FEW
    if mean <= SOME.rows:
        return SOME
    hopper = rows_SI.is_cuda and torch.cuda.get_device_capability(rows_SI.device)[0] in FAST_GROUPED_MM
    return MANY_HOPPER if hopper else MANY


def _launch(
    rows_SI: torch.Tensor,
    weight_EIO: torch.Tensor,
    end_E: torch.Tensor,
    output_SO: torch.Tensor,
    *,
    transposed: bool,
    add: bool,
    tiling: Tiling,
) -> None:
    experts, inner, outer = len(weight_EIO), rows_SI.shape[1], output_SO.shape[1]
    # Each expert may end in a tile that is not full: programs for which there is none end at once.
    tiles = triton.cdiv(len(rows_SI), tiling.rows) + min(experts, len(rows_SI))
    matmul_kernel[(tiles * triton.cdiv(outer, tiling.columns),)](
        rows_SI, weight_EIO, end_E, output_SO,
        **constants(experts, inner, outer, transposed=transposed, add=add, tiling=tiling),
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip


def constants(
    experts: int, inner: int, outer: int, *, transposed: bool, add: bool = False, tiling: Tiling
) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return {
        "EXPERTS": experts,
        "POWER": max(16, 1 << (experts - 1).bit_length()),
        "INNER": inner,
        "OUTER": outer,
        "TRANSPOSED": transposed,
        "ADD": add,
        "ROWS": tiling.rows,
        "COLUMNS": tiling.columns,
        "DEPTH": tiling.depth,
        "TOGETHER": ROWS_TOGETHER,
    }


@kernel
def matmul_kernel(
    rows: tl.tensor,
    weights: tl.tensor,
    ends: tl.tensor,
    output: tl.tensor,
    EXPERTS: tl.constexpr,
    POWER: tl.constexpr,
    INNER: tl.constexpr,
    OUTER: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    """A tile of the product of one expert."""
    column_tiles: tl.constexpr = (OUTER + COLUMNS - 1) // COLUMNS
    whole: tl.constexpr = INNER % DEPTH == 0
    numbers = tl.arange(0, POWER)
    end_E = tl.load(ends + numbers, mask=numbers < EXPERTS, other=0)
    begin_E = tl.load(ends + numbers - 1, mask=(numbers > 0) & (numbers < EXPERTS), other=0)
    tiles_E = (end_E - begin_E + ROWS - 1) // ROWS
    last_E = tl.cumsum(tiles_E, axis=0)
    expert = tl.sum((last_E <= tl.program_id(0) // column_tiles).to(tl.int32), axis=0)
    if expert >= EXPERTS:
        return
    mine = numbers == expert
    begin = tl.sum(tl.where(mine, begin_E, 0), axis=0)
    end = tl.sum(tl.where(mine, end_E, 0), axis=0)
    tiles = tl.sum(tl.where(mine, tiles_E, 0), axis=0)
    number = tl.program_id(0) - (tl.sum(tl.where(mine, last_E, 0), axis=0) - tiles) * column_tiles

    first = number // (TOGETHER * column_tiles) * TOGETHER
    height = tl.minimum(tiles - first, TOGETHER)
    within = number % (TOGETHER * column_tiles)
    row = begin + (first + within % height) * ROWS + tl.arange(0, ROWS)
    column = within // height * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)

    # Rows behind the last one are read as the last one, and not written.
    left = rows + tl.minimum(row, end - 1).to(tl.int64)[:, None] * INNER + depth[None, :]
    read = column
    if OUTER % COLUMNS != 0:
        read = tl.minimum(column, OUTER - 1)
    right = weights + expert.to(tl.int64) * INNER * OUTER
    if TRANSPOSED:
        right += read[None, :] * INNER + depth[:, None]
        step = DEPTH
    else:
        right += depth[:, None] * OUTER + read[None, :]
        step = DEPTH * OUTER
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for done in range(0, INNER, DEPTH):
        if whole:
            a = tl.load(left)
            b = tl.load(right)
        else:
            a = tl.load(left, mask=depth[None, :] < INNER - done, other=0.0)
            b = tl.load(right, mask=depth[:, None] < INNER - done, other=0.0)
        if EMULATED:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
        left += DEPTH
        right += step
    places = row.to(tl.int64)[:, None] * OUTER + column[None, :]
    kept = (row < end)[:, None] & (column < OUTER)[None, :]
    if ADD:
        total += tl.load(output + places, mask=kept, other=0.0).to(tl.float32)
    tl.store(output + places, rounded(total, output.dtype.element_ty), mask=kept)
