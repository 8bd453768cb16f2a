"""The shared experts give what transformers' module gives, keep their input alone, and are not computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AriaTextConfig
from transformers.models.aria.modeling_aria import AriaSharedExpertsMLP

from aria_finetune.model import shared_experts
from aria_finetune.model.nf4 import put_linear, quantize_linear
from aria_finetune.model.packed_linear import PackedLinear, weight_of
from aria_finetune.model.shared_experts import TILE_ROWS, start

HIDDEN, WIDTH = 64, 96
NAMES = ("gate_proj", "up_proj", "down_proj")


def mlp(dtype: torch.dtype, *, packed: bool = True, activation: str = "silu") -> AriaSharedExpertsMLP:
    config = AriaTextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, moe_num_shared_experts=2, num_attention_heads=4
    )
    config.hidden_act = activation
    module = AriaSharedExpertsMLP(config).to(dtype).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        dense = getattr(module, name)
        dense.weight.copy_(torch.randn(dense.weight.shape, generator=generator) * 0.2)
        if packed:
            layer = PackedLinear(
                dense.in_features, dense.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
            )
            put_linear(layer, *quantize_linear(dense.weight.data))
            setattr(module, name, layer)
    return module


def exact(module: AriaSharedExpertsMLP) -> AriaSharedExpertsMLP:
    """transformers' own in fp64, with the dequantised weights."""
    dense = mlp(torch.float64, packed=False)
    for name in NAMES:
        weight = weight_of(getattr(module, name))
        getattr(dense, name).weight.data.copy_(weight.read(0, weight.shape[0], torch.float32))
    return dense


def states(tokens: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, tokens, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)


def with_gradient(function: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = hidden.clone().requires_grad_()
    output = function(hidden)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    output.backward(upstream)
    assert hidden.grad is not None
    return output.detach(), hidden.grad


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    return float((found.double() - due.double()).norm() / due.double().norm())


@pytest.mark.parametrize("tokens", [1, 150, 300, TILE_ROWS])
def test_output_and_gradient_in_fp32(tokens: int) -> None:
    module, hidden = mlp(torch.float32), states(tokens, torch.float32)
    found = with_gradient(lambda x: start(module, x)(), hidden)
    due = with_gradient(exact(module), hidden.double())
    assert all(apart < 1e-6 for apart in map(distance, found, due))


def test_in_bf16_it_is_no_further_from_the_truth_than_transformers() -> None:
    module, hidden = mlp(torch.bfloat16), states(300, torch.bfloat16)
    due = with_gradient(exact(module), hidden.double())
    ours, theirs = with_gradient(lambda x: start(module, x)(), hidden), with_gradient(module, hidden)
    for found, other, truth in zip(ours, theirs, due, strict=True):
        assert found.dtype == torch.bfloat16
        assert distance(found, truth) <= 1.05 * distance(other, truth) < 0.02


def test_autocast_does_not_reach_it() -> None:
    module, hidden = mlp(torch.float32), states(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = with_gradient(lambda x: start(module, x)(), hidden)
    outside = with_gradient(lambda x: start(module, x)(), hidden)
    assert all(torch.equal(*pair) for pair in zip(inside, outside, strict=True))


def test_only_the_input_is_kept() -> None:
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    hidden = states(300, torch.bfloat16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        start(mlp(torch.bfloat16), hidden)()
    assert [tensor.data_ptr() for tensor in saved] == [hidden.data_ptr()]


def test_a_second_forward_does_not_come_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module, hidden = mlp(torch.float32), states(20, torch.float32)
    calls: list[int] = []
    compute = shared_experts._output

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return compute(*arguments)

    monkeypatch.setattr(shared_experts, "_output", counted)
    recomputed = with_gradient(lambda x: checkpoint(lambda y: start(module, y)(), x, use_reentrant=False), hidden)
    assert len(calls) == 1
    plain = with_gradient(lambda x: start(module, x)(), hidden)
    assert all(torch.equal(*pair) for pair in zip(recomputed, plain, strict=True))


@pytest.mark.parametrize("change", [{"packed": False}, {"activation": "gelu"}])
def test_what_it_is_not_made_for_is_left_to_transformers(change: dict[str, Any]) -> None:
    module, hidden = mlp(torch.float32, **change), states(20, torch.float32)
    assert torch.equal(start(module, hidden)(), module(hidden))
