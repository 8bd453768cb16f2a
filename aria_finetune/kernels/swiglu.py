"""silu(gate) * up of rows [gate | up], and everything that its backward gives in one pass. Arithmetic is fp32.

For the backward the output h of a row is taken to count with its routing weight w and to be multiplied by the down
projection: from g = dL/d(w h W) W^T / w come dL/dw = <h, g> and, with w g = dL/dh, the gradients of gate and up.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from aria_finetune.kernels.language import for_triton, kernel, rounded, tl

WARPS, BACKWARD_WARPS = 4, 8


def swiglu(gate_up_SN: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up.

    Args:
        gate_up_SN: (rows, 2 * width), contiguous.

    Returns:
        (rows, width) in the same dtype.
    """
    rows, width = len(gate_up_SN), gate_up_SN.shape[1] // 2
    if not for_triton(gate_up_SN):
        gate_SI, up_SI = gate_up_SN.float().chunk(2, dim=-1)
        return (functional.silu(gate_SI) * up_SI).to(gate_up_SN.dtype)
    output_SI = gate_up_SN.new_empty(rows, width)
    if rows:
        swiglu_kernel[(rows,)](gate_up_SN, output_SI, WIDTH=width, BLOCK=block(width), num_warps=WARPS)
    return output_SI


def swiglu_backward_(
    gate_up_SN: torch.Tensor, gradient_SI: torch.Tensor, weight_S: torch.Tensor, slot_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of gate and up, which takes their place, and the one of the routing weights.

    autograd is told that `gate_up_SN` is not what it was, so a second backward of it is refused.

    Args:
        gate_up_SN: (rows, 2 * width), contiguous, as `swiglu` had it; overwritten.
        gradient_SI: (rows, width), contiguous: of the output, before the routing weight.
        weight_S: (slots,), contiguous: the routing weight of every slot.
        slot_S: int32 (rows,): the slot of every row.

    Returns:
        `gate_up_SN`, and fp32 (rows,): <h, gradient> of every row.
    """
    rows, width = gradient_SI.shape
    weight_gradient_S = torch.empty(rows, dtype=torch.float32, device=gradient_SI.device)
    if not for_triton(gate_up_SN):
        weight_gradient_S.copy_(_backward(gate_up_SN, gradient_SI, weight_S[slot_S]))
    elif rows:
        swiglu_backward_kernel[(rows,)](
            gate_up_SN, gradient_SI, weight_S, slot_S, weight_gradient_S,
            WIDTH=width, BLOCK=block(width), num_warps=BACKWARD_WARPS,
        )  # fmt: skip
        torch.autograd.graph.increment_version(gate_up_SN)
    return gate_up_SN, weight_gradient_S


def block(width: int) -> int:
    """Columns that a program has of gate and of up: all of them, in a power of two."""
    return 1 << (width - 1).bit_length()


def _backward(gate_up_SN: torch.Tensor, gradient_SI: torch.Tensor, weight_S: torch.Tensor) -> torch.Tensor:
    gate_SI, up_SI = gate_up_SN.float().chunk(2, dim=-1)
    gradient_SI = gradient_SI.float()
    sigmoid_SI = torch.sigmoid(gate_SI)
    silu_SI = gate_SI * sigmoid_SI
    weight_gradient_S = (silu_SI * up_SI * gradient_SI).sum(-1)
    gradient_SI = gradient_SI * weight_S[:, None].float()
    slope_SI = sigmoid_SI + silu_SI * (1 - sigmoid_SI)
    gate_up_SN.copy_(torch.cat([gradient_SI * up_SI * slope_SI, gradient_SI * silu_SI], dim=-1))
    return weight_gradient_S


@kernel
def swiglu_kernel(gate_up: tl.tensor, output: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        output + row * WIDTH + columns, rounded(gate * tl.sigmoid(gate) * up, output.dtype.element_ty), mask=inside
    )


@kernel
def swiglu_backward_kernel(
    gate_up: tl.tensor,
    gradients: tl.tensor,
    weights: tl.tensor,
    slots: tl.tensor,
    weight_gradients: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gates = gate_up + row * 2 * WIDTH + columns
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gates + WIDTH, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(gradients + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(weight_gradients + row, tl.sum(silu * up * gradient, axis=0))
    gradient *= tl.load(weights + tl.load(slots + row)).to(tl.float32)
    element_type = gate_up.dtype.element_ty
    tl.store(gates, rounded(gradient * up * (sigmoid + silu * (1 - sigmoid)), element_type), mask=inside)
    tl.store(gates + WIDTH, rounded(gradient * silu, element_type), mask=inside)
