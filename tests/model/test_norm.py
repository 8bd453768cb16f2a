"""The decoder's norms give transformers' bits, and the gradients of fp64 within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.aria.modeling_aria import AriaTextRMSNorm

from aria_finetune.model.loading import load_model
from aria_finetune.model.norm import TILE_ROWS, LeanRMSNorm, install_lean_norms

HIDDEN = 64


def norms(dtype: torch.dtype) -> tuple[AriaTextRMSNorm, LeanRMSNorm]:
    plain = AriaTextRMSNorm(HIDDEN, eps=1e-5)
    plain.weight.data.copy_(torch.rand(HIDDEN, generator=torch.Generator().manual_seed(0)) + 0.5)
    plain = plain.to(dtype).requires_grad_(requires_grad=False)
    holder = torch.nn.Sequential(plain)
    install_lean_norms(holder)
    assert isinstance(holder[0], LeanRMSNorm)
    return plain, holder[0]


def states(rows: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(2, rows, HIDDEN, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)


def gradient(norm: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    hidden = hidden.clone().requires_grad_()
    output = norm(hidden)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    (found,) = torch.autograd.grad(output, hidden, upstream)
    assert found.dtype == hidden.dtype
    return found


def exact_gradient(norm: AriaTextRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    """By autograd in fp64 of x / rms(x) * weight."""
    x = hidden.double().requires_grad_()
    output = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(hidden.dtype)
    (found,) = torch.autograd.grad(output, x, upstream.double())
    return found


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    return float((found.double() - due.double()).norm() / due.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, TILE_ROWS, TILE_ROWS + 7])
def test_the_output_is_transformers_to_the_bit(rows: int, dtype: torch.dtype) -> None:
    plain, lean = norms(dtype)
    hidden = states(rows, dtype)
    before = hidden.clone()
    assert torch.equal(lean(hidden), plain(hidden))
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype: torch.dtype) -> None:
    plain, lean = norms(dtype)
    hidden = states(TILE_ROWS + 7, dtype)
    due = exact_gradient(plain, hidden)
    found, other = gradient(lean, hidden), gradient(plain, hidden)
    if dtype == torch.float32:
        assert distance(found, due) < 1e-6
    else:
        assert distance(found, due) <= 1.05 * distance(other, due) < 0.01


def test_views_and_autocast_change_nothing() -> None:
    _, lean = norms(torch.float32)
    hidden = states(10, torch.float32)
    turned = hidden.transpose(0, 1).contiguous().transpose(0, 1)
    assert not turned.is_contiguous()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient(lean, turned)
    assert torch.equal(found, gradient(lean, hidden))


def test_only_the_input_is_kept() -> None:
    _, lean = norms(torch.bfloat16)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    hidden = states(10, torch.bfloat16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lean(hidden)
    assert [tensor.shape for tensor in saved] == [hidden.shape, lean.weight.shape]


def test_a_weight_that_is_trained_gets_its_gradient() -> None:
    _, lean = norms(torch.float32)
    lean.weight.requires_grad_()
    lean(states(3, torch.float32)).sum().backward()
    assert lean.weight.grad is not None


def test_a_loaded_decoder_has_them(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder)).model
    found = [module for module in model.modules() if isinstance(module, AriaTextRMSNorm)]
    assert len(found) == 2 * model.config.text_config.num_hidden_layers + 1
    assert all(isinstance(module, LeanRMSNorm) and not module.weight.requires_grad for module in found)
