"""The router computes in fp32 whatever surrounds it, so that a small change of its weight still acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AriaForConditionalGeneration, AriaTextConfig

from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.model.router import Float32Router, install_float32_routers

HIDDEN, EXPERTS, TOP_K = 2560, 64, 6
"""The real model's router."""


def new_router() -> Float32Router:
    config = AriaTextConfig(hidden_size=HIDDEN, moe_num_experts=EXPERTS, moe_topk=TOP_K, num_attention_heads=20)
    router = Float32Router(config)
    router.weight.data.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    return router


def hidden_states(tokens: int, width: int = HIDDEN) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(1))


def reference(hidden: torch.Tensor, weight: torch.Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, weights and experts in fp64: the largest logits, and a softmax over those alone."""
    logits = hidden.double().numpy() @ weight.double().numpy().T
    experts = np.argsort(-logits, axis=1)[:, :top_k]
    top = np.take_along_axis(logits, experts, axis=1)
    shares = np.exp(top - top.max(axis=1, keepdims=True))
    return logits, shares / shares.sum(axis=1, keepdims=True), experts


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routing_is_that_of_fp64(dtype: torch.dtype, autocast: bool) -> None:
    router, hidden = new_router(), hidden_states(256).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits, weights, experts = router(hidden)
    expected_logits, expected_weights, expected_experts = reference(hidden, router.weight.detach(), TOP_K)
    assert (logits.dtype, weights.dtype, experts.dtype) == (torch.float32, dtype, torch.int64)
    assert np.abs(logits.numpy() - expected_logits).max() <= 1e-5
    np.testing.assert_array_equal(experts.numpy(), expected_experts)
    rounding = 2**-9 if dtype == torch.bfloat16 else 0.0  # of weights below 1
    assert np.abs(weights.float().numpy() - expected_weights).max() <= 1e-5 + rounding


def test_the_gradient_is_that_of_fp64() -> None:
    router, hidden = new_router(), hidden_states(16)
    exact = router.weight.detach().double().requires_grad_()
    (torch.topk(hidden.double() @ exact.T, TOP_K).values.softmax(-1)[:, 0] ** 2).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        _, weights, _ = router(hidden)
    (weights[:, 0] ** 2).sum().backward()
    assert exact.grad is not None
    assert router.weight.grad is not None
    assert (router.weight.grad - exact.grad).abs().max() <= 1e-5 * exact.grad.abs().max()


def with_router_adapter(model: AriaForConditionalGeneration, deviation: float) -> Any:
    """The first router of `model` with an adapter whose delta has that standard deviation."""
    adapted = add_lora(model, LoraPlan(targets=("router",), rank=4, alpha=8), base_name="tiny", seed=0)
    wrapper = adapted.base_model.model.model.language_model.layers[0].mlp.router
    b_OR = wrapper.lora_B["default"].weight.data
    b_OR.normal_(generator=torch.Generator().manual_seed(2))
    b_OR.mul_(deviation / delta_of(wrapper).std().item())
    return wrapper.eval()


def delta_of(wrapper: Any) -> torch.Tensor:
    """What the adapter adds to the weight, fp64: alpha / rank times B A."""
    return (
        8 / 4 * wrapper.lora_B["default"].weight.detach().double() @ wrapper.lora_A["default"].weight.detach().double()
    )


def lost_share(wrapper: Any) -> float:
    """How much of the adapter's effect on the logits is not what it should be; 0 where all is there."""
    hidden = hidden_states(512, 64).bfloat16()
    with torch.no_grad():
        effect = wrapper(hidden)[0].double() - wrapper.get_base_layer()(hidden)[0].double()
    wanted = hidden.double() @ delta_of(wrapper).T
    return float((effect - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("experts", ["bf16", "nf4"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_small_change_of_the_router_acts_in_full(tiny_folder: Path, experts: Experts, autocast: bool) -> None:
    wrapper = with_router_adapter(load_model(str(tiny_folder), experts=experts).model, 1e-4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert lost_share(wrapper) < 0.01


@pytest.mark.parametrize("checkpointed", [False, True])
def test_under_autocast_the_weight_that_routes_is_exact(tiny_folder: Path, checkpointed: bool) -> None:
    """In training the adapter's product would run in bf16: the layer calls its router outside autocast."""
    model = load_model(str(tiny_folder)).model
    wrapper = with_router_adapter(model, 1e-4)
    exact = wrapper.get_base_layer().weight.detach().double() + delta_of(wrapper)
    seen: list[torch.Tensor] = []
    wrapper.get_base_layer().register_forward_hook(lambda module, *_: seen.append(module.weight.detach().double()))
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.arange(20, 60)[None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert len(seen) == (2 if checkpointed else 1)
    assert max((weight - exact).abs().max().item() for weight in seen) <= 1e-7 * exact.abs().max()


def test_in_a_bf16_router_it_would_not(tiny_folder: Path) -> None:
    plain = AriaForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    assert lost_share(with_router_adapter(plain.requires_grad_(requires_grad=False), 1e-4)) > 0.2


def test_with_an_adapter_the_same_experts_are_chosen_as_in_fp64(tiny_folder: Path) -> None:
    wrapper = with_router_adapter(load_model(str(tiny_folder)).model, 1e-2)
    hidden = hidden_states(512, 64)
    with torch.no_grad():
        logits, weights, experts = wrapper(hidden)
    weight = wrapper.get_base_layer().weight.detach().double() + delta_of(wrapper)
    expected_logits, expected_weights, expected_experts = reference(hidden, weight, 6)
    assert np.abs(logits.numpy() - expected_logits).max() <= 1e-5
    np.testing.assert_array_equal(experts.numpy(), expected_experts)
    assert np.abs(weights.numpy() - expected_weights).max() <= 1e-5


def test_installing_keeps_the_mode_and_freezes(tiny_folder: Path) -> None:
    model = AriaForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.bfloat16).train()
    stored = {layer: torch.full((64, 64), float(layer)) for layer in range(2)}
    install_float32_routers(model, stored.__getitem__)
    for layer, block in enumerate(model.model.language_model.layers):
        assert isinstance(block.mlp.router, Float32Router)
        assert block.mlp.router.training
        assert torch.equal(block.mlp.router.weight, stored[layer])
        assert not block.mlp.router.weight.requires_grad
