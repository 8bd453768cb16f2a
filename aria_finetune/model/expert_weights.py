"""The weights of routed experts, dense or NF4, some rows at a time: read, multiplied by, forgotten.

On a CPU a piece of a weight is still in the cache when it is multiplied by, and takes memory that the piece before it had.
A whole expert in fp32 is 34 MB, and the system clears as much anew every time it is asked for. Knows nothing of routing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch.nn import functional

from aria_finetune.model.nf4 import BLOCK, read_scales

PIECE_BYTES = 7 << 18
"""Of a piece: less than the second-level cache of a core, 2 MiB where it was measured, and than a block that is given back to
the system when it is freed (libraries.py)."""
FEW_ROWS = 8
"""For fewer, MKL multiplies faster by a transposed weight as it is; for more, by the weight if the rows are transposed."""


class Weight(Protocol):
    """The weight (in, out) of one expert."""

    @property
    def shape(self) -> torch.Size:
        """(in, out)."""

    def read(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows `start` to `stop`, (stop - start, out)."""


class DenseWeight:
    """A weight in a float dtype, which is converted."""

    def __init__(self, weight_IO: torch.Tensor) -> None:
        self._weight_IO = weight_IO

    @property
    def shape(self) -> torch.Size:
        """(in, out)."""
        return self._weight_IO.shape

    def read(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows `start` to `stop`, (stop - start, out)."""
        return self._weight_IO[start:stop].to(dtype)


class PackedWeight:
    """A weight in NF4, dequantised.

    A value is rounded once, to the dtype that it is read in: fp32 is what the code and its scale say, whatever was packed.
    """

    def __init__(self, packed: torch.Tensor, scales: torch.Tensor, code: torch.Tensor, shape: torch.Size) -> None:
        self._packed, self._scales, self._code, self._shape = packed, scales, code, shape

    @property
    def shape(self) -> torch.Size:
        """(in, out)."""
        return self._shape

    def read(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows `start` to `stop`, (stop - start, out), which are whole blocks of 64 weights."""
        columns = self._shape[1]
        first, last = start * columns, stop * columns
        state = QuantState(
            absmax=self._scales[first // BLOCK : last // BLOCK],
            shape=torch.Size([stop - start, columns]),
            dtype=dtype,
            blocksize=BLOCK,
            code=self._code,
            quant_type="nf4",
        )
        weight: torch.Tensor = dequantize_4bit(self._packed[first // 2 : last // 2], state)
        return weight


class DenseExperts:
    """The weights (experts, in, out) of one projection."""

    def __init__(self, weight_EIO: torch.Tensor) -> None:
        self._weight_EIO = weight_EIO

    def __getitem__(self, expert: int) -> DenseWeight:
        """The weight of an expert."""
        return DenseWeight(self._weight_EIO[expert])


class PackedExperts:
    """The same in NF4; of an expert that is not asked for nothing is dequantised, not even its scales."""

    def __init__(self, packed: torch.Tensor, state: QuantState) -> None:
        self._state = state
        self._packed = packed.view(state.shape[0], -1, 1)

    def __getitem__(self, expert: int) -> PackedWeight:
        """The weight of an expert."""
        shape: torch.Size = self._state.shape[1:]
        blocks = shape.numel() // BLOCK
        scales = read_scales(self._state, expert * blocks, (expert + 1) * blocks)
        return PackedWeight(self._packed[expert], scales, self._state.code, shape)


Experts = DenseExperts | PackedExperts


def arithmetic(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What experts, for tokens of a dtype, and the vision tower compute in: fp32 for 16 bit on a CPU without matrix
    instructions (AMX) for bf16.

    There MKL's products in fp32 take half as long as oneDNN's in bf16 (150 and 80 GFLOP/s of a core with AVX512-BF16), are
    exact to the rounding of the result, and no machine code is made and kept for every shape of them.
    """
    if device.type != "cpu" or dtype.itemsize != 2:
        return dtype
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    return dtype if dtype == torch.bfloat16 and capabilities.get("amx_bf16", False) else torch.float32


def multiply(rows_NI: torch.Tensor, weight: Weight) -> torch.Tensor:
    """`rows_NI` times the weight of an expert, (N, out), in the dtype of the rows."""
    (inner, _), dtype, step = weight.shape, rows_NI.dtype, _piece_rows(weight, rows_NI)
    product_NO = product(rows_NI[:, :step], weight.read(0, min(step, inner), dtype))
    for start in range(step, inner, step):
        stop = min(start + step, inner)
        product_NO.addmm_(rows_NI[:, start:stop], weight.read(start, stop, dtype))
    return product_NO


def multiply_transposed(rows_NO: torch.Tensor, weight: Weight) -> torch.Tensor:
    """`rows_NO` times the transposed weight of an expert, (N, in), in the dtype of the rows."""
    (inner, _), dtype, step = weight.shape, rows_NO.dtype, _piece_rows(weight, rows_NO)
    if step >= inner:
        return product(rows_NO, weight.read(0, inner, dtype).T)
    few = len(rows_NO) < FEW_ROWS
    rows_ON = rows_NO.T if few else rows_NO.T.contiguous()
    product_IN = rows_NO.new_empty(len(rows_NO), inner).T if few else rows_NO.new_empty(inner, len(rows_NO))
    for start in range(0, inner, step):
        stop = min(start + step, inner)
        torch.mm(weight.read(start, stop, dtype), rows_ON, out=product_IN[start:stop])
    return product_IN.T.contiguous()


def rounded_up(count: int) -> int:
    """The next number with at most three significant bits: 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ..."""
    unit = 1 << max((count - 1).bit_length() - 3, 0)
    return -(-count // unit) * unit


def product(rows_NI: torch.Tensor, weight_IO: torch.Tensor) -> torch.Tensor:
    """`rows_NI @ weight_IO`, without a kernel of its own for each of the many N that routing makes.

    On a CPU, oneDNN writes machine code for every shape of a 16-bit product, about half a megabyte each, keeps a thousand
    of them and never gives back half of that memory: the experts of the tiny Aria held 700 MiB after four steps. Rows of
    zeros round N up to one of four counts per power of two.
    """
    count = len(rows_NI)
    if rows_NI.device.type != "cpu" or rows_NI.dtype.itemsize != 2:
        return rows_NI @ weight_IO
    padded = functional.pad(rows_NI, (0, 0, 0, rounded_up(count) - count))
    return (padded @ weight_IO)[:count]


def _piece_rows(weight: Weight, rows: torch.Tensor) -> int:
    """How many rows of a weight are read at a time: all of them on a GPU, and where the sum over pieces would be rounded."""
    inner, columns = weight.shape
    if rows.device.type != "cpu" or rows.dtype.itemsize == 2:
        return inner
    unit = BLOCK // math.gcd(BLOCK, columns)  # the fewest rows that are whole blocks
    return max(PIECE_BYTES // (columns * rows.dtype.itemsize) // unit, 1) * unit
