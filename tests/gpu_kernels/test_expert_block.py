"""The experts of a layer in these kernels, few and small enough for the interpreter; tests/model/test_grouped_experts.py has more."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import AriaTextConfig
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.expert_adapters import ExpertLora
from aria_finetune.model.experts import LEAN
from aria_finetune.model.grouped_experts import GROUPED, limit_experts
from aria_finetune.model.nf4 import EXPERT_TENSORS, put_experts, quantize_experts

EXPERTS, HIDDEN, WIDTH, TOKENS = 6, 64, 32, 11


def experts(implementation: str, dtype: torch.dtype, device: str, *, packed: bool) -> AriaExperts:
    config = AriaTextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, moe_num_experts=EXPERTS, moe_topk=2, num_attention_heads=4
    )
    config._experts_implementation = implementation
    module = AriaExperts(config).to(device, dtype).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for name in EXPERT_TENSORS:
        parameter = getattr(module, name)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if packed:
            put_experts(module, name, *quantize_experts(parameter.data))
    return module


def gradients(module: AriaExperts, index: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, and gradients of tokens and routing weights."""
    generator = torch.Generator().manual_seed(1)
    tokens, upstream = (torch.randn(TOKENS, HIDDEN, generator=generator) for _ in range(2))
    weights = torch.rand(TOKENS, 2, generator=generator)
    leaves = [leaf.to(index.device, dtype).requires_grad_() for leaf in (tokens, weights)]
    output = module(leaves[0], index, leaves[1])
    output.backward(upstream.to(output))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("at_a_time", [None, 2])
@pytest.mark.parametrize(("dtype", "packed"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def test_it_is_transformers_own(device: str, dtype: torch.dtype, packed: bool, at_a_time: int | None) -> None:
    index = torch.tensor([[0, 5], [5, 2], [2, 0], [5, 0]] * 3)[:TOKENS].to(device)  # none for 1, 3 and 4
    module = experts(GROUPED, dtype, device, packed=packed)
    if at_a_time is not None:
        limit_experts(module, at_a_time)
    found = gradients(module, index, dtype)
    due = gradients(experts("eager", dtype, device, packed=packed), index, dtype)
    for one, other in zip(found, due, strict=True):
        assert one.dtype == dtype
        assert (one.float() - other.float()).norm() / other.float().norm() < (1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("at_a_time", [None, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_adapters_are_those_of_experts_one_at_a_time(
    device: str, dtype: torch.dtype, tolerance: float, at_a_time: int | None
) -> None:
    """tests/model/test_expert_adapters.py holds both against fp64."""
    index = torch.tensor([[0, 5], [5, 2], [2, 0], [5, 0]] * 3)[:TOKENS].to(device)
    found, due = (adapted_gradients(name, index, dtype, device, at_a_time) for name in (GROUPED, LEAN))
    for one, other in zip(found, due, strict=True):
        assert one.dtype == other.dtype
        assert (one.float() - other.float()).norm() / other.float().norm() < tolerance


def adapted_gradients(
    implementation: str, index: torch.Tensor, dtype: torch.dtype, device: str, at_a_time: int | None
) -> list[torch.Tensor]:
    """Output, gradients of tokens and routing weights, and of the factors of adapters of rank 3."""
    module: torch.nn.Module = experts(implementation, dtype, device, packed=True)
    if at_a_time is not None:
        limit_experts(module, at_a_time)
    generator = torch.Generator().manual_seed(2)
    for name in EXPERT_TENSORS:
        module = ExpertLora(module, name, LoraConfig(r=3, lora_alpha=6), generator, torch.device(device))
        b = module.lora_B["default"].weight.data
        b.copy_(torch.randn(b.shape, generator=generator) * 0.2)
    made = gradients(module, index, dtype)  # type: ignore[arg-type]
    factors = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
    assert len(factors) == 4
    return [*made, *(factor for factor in factors if factor is not None)]
