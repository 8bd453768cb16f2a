"""Experts one at a time give the outputs and gradients of transformers' own, and hold only what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AriaTextConfig
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model import experts as experts_module
from aria_finetune.model import grouped_experts as grouped_module
from aria_finetune.model.expert_weights import PackedExperts, PackedWeight
from aria_finetune.model.experts import LEAN, shares
from aria_finetune.model.grouped_experts import GROUPED
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora
from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state, put_experts, quantize_experts

EXPERTS, TOP_K, HIDDEN, WIDTH = 8, 3, 64, 32
Recompute = Literal["no", "checkpoint", "reentrant"]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def experts(
    implementation: str, dtype: torch.dtype, *, packed: bool = False, count: int = EXPERTS, top_k: int = TOP_K
) -> AriaExperts:
    config = AriaTextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, moe_num_experts=count, moe_topk=top_k, num_attention_heads=4
    )
    config._experts_implementation = implementation
    module = AriaExperts(config).to(dtype).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for name in EXPERT_TENSORS:
        parameter = getattr(module, name)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if packed:
            put_experts(module, name, *quantize_experts(parameter.data))
    return module


def exact(module: AriaExperts) -> AriaExperts:
    """transformers' own loop over experts, in fp64, with the weights that a module has."""
    config = AriaTextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, moe_num_experts=module.num_experts, num_attention_heads=4
    )
    config._experts_implementation = "eager"
    found = AriaExperts(config).double().requires_grad_(requires_grad=False)
    for name in EXPERT_TENSORS:
        setattr(found, name, nn.Parameter(getattr(module, name).double(), requires_grad=False))
    return found


def routed(tokens: int, dtype: torch.dtype, *, idle: int = 0, count: int = EXPERTS, top_k: int = TOP_K) -> Batch:
    """Hidden states, indices and weights; the last `idle` experts get no token."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    logits = torch.randn(tokens, count - idle, generator=generator)
    top, index = logits.topk(top_k)
    return hidden, index, top.softmax(-1).to(dtype)


def gradients(
    module: AriaExperts,
    hidden: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    *,
    recompute: Recompute = "no",
) -> tuple[torch.Tensor, ...]:
    """Output, and gradients of hidden states and routing weights, for one upstream gradient."""
    hidden, weights = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
    output = (
        module(hidden, index, weights)
        if recompute == "no"
        else checkpoint(module, hidden, index, weights, use_reentrant=recompute == "reentrant")
    )
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype))
    assert hidden.grad is not None
    assert weights.grad is not None
    return output.detach(), hidden.grad, weights.grad


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    return float((found.double() - due.double()).norm() / due.double().norm())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("other", ["eager", "grouped_mm"])
@pytest.mark.parametrize(("tokens", "idle"), [(1, 0), (40, 0), (40, 5), (300, 2)])
def test_outputs_and_gradients_in_fp32(tokens: int, idle: int, other: str, packed: bool) -> None:
    batch = routed(tokens, torch.float32, idle=idle)
    found = gradients(experts(LEAN, torch.float32, packed=packed), *batch)
    due = gradients(experts(other, torch.float32, packed=packed), *batch)
    assert all(apart < 5e-7 for apart in map(distance, found, due))


def all_to_one(dtype: torch.dtype) -> Batch:
    hidden, index, weights = routed(50, dtype, top_k=1)
    return hidden, torch.full_like(index, 5), weights


ROUTINGS: dict[str, Callable[[torch.dtype], Batch]] = {
    "experts without a token": lambda dtype: routed(50, dtype, idle=4),
    "all tokens to one": all_to_one,
    "all choices of all tokens are one": lambda dtype: (
        routed(50, dtype)[0],
        torch.full((50, 3), 2),
        routed(50, dtype)[2],
    ),
    "top 6 of 64": lambda dtype: routed(50, dtype, count=64, top_k=6),
}


@pytest.mark.parametrize("recompute", ["no", "checkpoint", "reentrant"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_they_are_those_of_eager(
    routing: str, dtype: torch.dtype, tolerance: float, packed: bool, recompute: Recompute
) -> None:
    """Of transformers' loop in the same dtype, and of the same in fp64."""
    hidden, index, weights = ROUTINGS[routing](dtype)
    count, top_k = (64 if "64" in routing else EXPERTS), index.shape[1]
    lean, eager = (experts(name, dtype, packed=packed, count=count, top_k=top_k) for name in (LEAN, "eager"))
    found = gradients(lean, hidden, index, weights, recompute=recompute)
    due = gradients(eager, hidden, index, weights)
    truth = gradients(exact(eager), hidden.double(), index, weights.double())
    assert [tensor.dtype for tensor in found] == [dtype] * 3
    assert all(apart < tolerance for apart in map(distance, found, due))
    assert all(apart < tolerance for apart in map(distance, found, truth))


def test_in_bf16_it_is_no_further_from_the_truth_than_eager() -> None:
    """The truth: fp64 arithmetic on the same bf16 weights and inputs."""
    batch = routed(200, torch.bfloat16)
    truth = gradients(exact(experts("eager", torch.bfloat16)), batch[0].double(), batch[1], batch[2].double())
    ours = gradients(experts(LEAN, torch.bfloat16), *batch)
    eager = gradients(experts("eager", torch.bfloat16), *batch)
    for found, other, due in zip(ours, eager, truth, strict=True):
        assert found.dtype == torch.bfloat16
        assert distance(found, due) <= 1.05 * distance(other, due) < 0.02


def test_recomputation_changes_nothing() -> None:
    batch, module = routed(50, torch.float32), experts(LEAN, torch.float32)
    plain, recomputed = gradients(module, *batch), gradients(module, *batch, recompute="checkpoint")
    assert all(torch.equal(*pair) for pair in zip(plain, recomputed, strict=True))


def test_an_expert_of_many_tokens_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, module = routed(50, torch.float32), experts(LEAN, torch.float32)
    due = gradients(module, *batch)
    monkeypatch.setattr(experts_module, "MOST_ROWS", 7)
    parts = [len(share.slots) for share in shares(batch[1], EXPERTS)]
    assert max(parts) == 7
    assert sum(parts) == 150
    assert all(apart < 5e-7 for apart in map(distance, gradients(module, *batch), due))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_gradient_alone_is_the_same(wanted: tuple[bool, bool]) -> None:
    hidden, index, weights = routed(50, torch.float32)
    module = experts(LEAN, torch.float32)
    both = gradients(module, hidden, index, weights)
    hidden, weights = hidden.requires_grad_(wanted[0]), weights.requires_grad_(wanted[1])
    output = module(hidden, index, weights)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)))
    for tensor, due, asked in zip((hidden, weights), both[1:], wanted, strict=True):
        assert (tensor.grad is not None) == asked
        assert tensor.grad is None or torch.equal(tensor.grad, due)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    hidden, index, weights = routed(4, torch.float32)
    output = experts(LEAN, torch.float32)(hidden.requires_grad_(), index, weights)
    (gradient,) = torch.autograd.grad(output.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("held", ["nf4", "bf16"])
@pytest.mark.parametrize("way", [LEAN, GROUPED])
def test_a_checkpointed_layer_computes_its_experts_once(
    tiny_folder: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, way: str, held: Any, reentrant: bool
) -> None:
    """With adapters and under autocast, as it is trained; gradients are those without checkpointing, to the bit.

    The shared experts beside dense ones are transformers' own, as all are on a GPU.
    """
    computed: list[AriaExperts] = []
    home = {LEAN: experts_module, GROUPED: grouped_module}[way]
    computation = home._COMPUTATION  # type: ignore[attr-defined]

    def counted(module: AriaExperts, *batch: Any) -> torch.Tensor:
        computed.append(module)
        found: torch.Tensor = computation.output(module, *batch)
        return found

    monkeypatch.setattr(home, "_COMPUTATION", replace(computation, output=counted))

    def trained(*, checkpointing: bool) -> dict[str, torch.Tensor]:
        base = load_model(str(tiny_folder), implementation=way, experts=held).model
        model = add_lora(base, LoraPlan(dropout=0), base_name="tiny", seed=0)
        for name, parameter in adapter_state(model).items():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        model.enable_input_require_grads()
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        computed.clear()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        layers = base.config.text_config.num_hidden_layers
        assert len(computed) == len(set(computed)) == layers
        loss.backward()
        assert len(computed) == (2 * layers if checkpointing and reentrant else layers)
        return {name: parameter.grad for name, parameter in adapter_state(model).items()}

    due = trained(checkpointing=False)
    found = trained(checkpointing=True)
    assert all(gradient.abs().max() > 0 for gradient in due.values())
    assert all(torch.equal(found[name], gradient) for name, gradient in due.items())


def test_autocast_does_not_reach_it() -> None:
    batch, module = routed(50, torch.float32), experts(LEAN, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(*batch)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, module(*batch))


def test_only_experts_with_tokens_are_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    get = PackedExperts.__getitem__

    def counted(self: PackedExperts, expert: int) -> PackedWeight:
        asked.append(expert)
        return get(self, expert)

    monkeypatch.setattr(PackedExperts, "__getitem__", counted)
    hidden, _, weights = routed(4, torch.float32)
    index = torch.tensor([[0, 2, 7]] * 4)
    output = experts(LEAN, torch.float32, packed=True)(hidden.requires_grad_(), index, weights)
    assert asked == [0, 0, 2, 2, 7, 7]
    asked.clear()
    output.sum().backward()
    assert sorted(asked) == [0, 0, 2, 2, 7, 7]


def test_every_slot_is_in_one_share() -> None:
    index = torch.tensor([[3, 0], [0, 5], [3, 5]])
    found = {share.expert: (share.slots.tolist(), share.rows.tolist()) for share in shares(index, 8)}
    assert found == {
        0: ([1, 2], [0, 1]),
        3: ([0, 4], [0, 2]),
        5: ([3, 5], [1, 2]),
    }


def test_experts_that_are_trained_are_refused() -> None:
    module = experts(LEAN, torch.float32).requires_grad_(requires_grad=True)
    with pytest.raises(RuntimeError, match="gate_up_proj is to be trained"):
        module(*routed(4, torch.float32))


@pytest.mark.parametrize("precision", ["nf4", "fp32"])
def test_the_whole_model(tiny_folder: Path, precision: str, ids: torch.Tensor) -> None:
    def logits(implementation: str) -> torch.Tensor:
        model = load_model(
            str(tiny_folder),
            experts=precision,
            dtype=torch.float32,
            implementation=implementation,  # type: ignore[arg-type]
        ).model
        assert model.config.text_config._experts_implementation == implementation
        assert (expert_state(model.model.language_model.layers[0].mlp.experts, "down_proj") is None) == (
            precision == "fp32"
        )
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids).logits
        return found

    assert (logits(LEAN) - logits("grouped_mm")).abs().max() < 1e-4


def test_saved_tensors_are_few() -> None:
    """Input, weights and indices."""
    hidden, index, weights = routed(100, torch.float32)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        experts(LEAN, torch.float32, packed=True)(hidden.requires_grad_(), index, weights)
    numbers = sum(tensor.numel() for tensor in saved)
    assert numbers == hidden.numel() + 2 * index.numel()
