"""SwiGLU and what its backward gives: against autograd in fp64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import assert_close, random_tensor
from torch.nn import functional

from aria_finetune.kernels.swiglu import swiglu, swiglu_backward_

SHAPES = [(1, 16), (9, 96), (5, 100), (3, 1664)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_the_output(device: str, rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = random_tensor(device, rows, 2 * width, dtype=dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert_close(swiglu(gate_up), functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_the_gradients(device: str, rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up, gradient = (
        random_tensor(device, rows, 2 * width, dtype=dtype),
        random_tensor(device, rows, width, dtype=dtype, seed=1),
    )
    slots = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(device, torch.int32)
    by_slot = random_tensor(device, rows, seed=2)
    exact, weights = gate_up.double().requires_grad_(), by_slot[slots.long()].double().requires_grad_()
    gate, up = exact.chunk(2, dim=-1)
    (functional.silu(gate) * up * weights[:, None]).backward(gradient.double())
    found, weight_gradient = swiglu_backward_(gate_up, gradient, by_slot, slots)
    assert exact.grad is not None
    assert weights.grad is not None
    assert found is gate_up
    assert_close(found, exact.grad)
    assert weight_gradient.dtype == torch.float32
    assert_close(weight_gradient, weights.grad)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of numpy, under the interpreter
def test_large_values_overflow_nothing(device: str) -> None:
    gate_up = torch.tensor([[-1e4, 1e4, -90.0, 90.0, 1.0, 1.0, 1.0, 1.0]], device=device)
    assert swiglu(gate_up).tolist() == [[0.0, 1e4, pytest.approx(0, abs=1e-30), pytest.approx(90.0)]]
    one = torch.ones(1, device=device)
    gradient, _ = swiglu_backward_(gate_up, torch.ones(1, 4, device=device), one, one.int() - 1)
    assert gradient.isfinite().all()
    assert gradient[0, 1] == pytest.approx(1.0)


def test_autograd_learns_that_its_tensor_is_gone(device: str) -> None:
    gate_up, gradient = random_tensor(device, 2, 32), random_tensor(device, 2, 16, seed=1)
    kept = torch.ones(2, 32, device=device, requires_grad=True)
    product = (kept * gate_up).sum()
    swiglu_backward_(gate_up, gradient, gradient[:, 0].contiguous(), torch.arange(2, device=device, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
