"""Experts one at a time give the outputs and gradients of transformers' own, and hold only what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch.utils.checkpoint import checkpoint
from transformers import AriaTextConfig
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.experts import LEAN, PackedExperts, multiply, rounded_up, shares
from aria_finetune.model.loading import load_model
from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state, put_experts, quantize_experts

EXPERTS, TOP_K, HIDDEN, WIDTH = 8, 3, 64, 32


def experts(implementation: str, dtype: torch.dtype, *, packed: bool = False) -> AriaExperts:
    config = AriaTextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, moe_num_experts=EXPERTS, moe_topk=TOP_K, num_attention_heads=4
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


def routed(tokens: int, dtype: torch.dtype, *, idle: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, indices and weights; the last `idle` experts get no token."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    logits = torch.randn(tokens, EXPERTS - idle, generator=generator)
    top, index = logits.topk(TOP_K)
    return hidden, index, top.softmax(-1).to(dtype)


def gradients(
    module: AriaExperts, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, *, recompute: bool = False
) -> tuple[torch.Tensor, ...]:
    """Output, and gradients of hidden states and routing weights, for one upstream gradient."""
    hidden, weights = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
    output = (
        checkpoint(module, hidden, index, weights, use_reentrant=False) if recompute else module(hidden, index, weights)
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
    assert max(map(distance, found, due)) < 5e-7


def test_products_on_a_cpu_have_few_shapes() -> None:
    counts = [rounded_up(count) for count in range(1, 4097)]
    assert len(set(counts)) == 8 + 4 * 9  # all up to 8, then four to each power of two up to 4096
    assert counts[:16] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12, 14, 14, 16, 16]
    assert all(count <= rounded <= 1.25 * count for count, rounded in enumerate(counts, start=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 9, 33])
def test_rounding_up_changes_no_row(count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((count, 64), (64, 32)))
    found = multiply(rows, weight)
    assert found.shape == (count, 32)
    assert distance(found, rows.double() @ weight.double()) < (1e-6 if dtype == torch.float32 else 4e-3)


def test_in_bf16_it_is_no_further_from_the_truth_than_eager() -> None:
    """The truth: fp64 arithmetic on the same bf16 weights and inputs."""
    batch = routed(200, torch.bfloat16)
    exact = experts("eager", torch.bfloat16).double()
    truth = gradients(exact, batch[0].double(), batch[1], batch[2].double())
    ours = gradients(experts(LEAN, torch.bfloat16), *batch)
    eager = gradients(experts("eager", torch.bfloat16), *batch)
    for found, other, due in zip(ours, eager, truth, strict=True):
        assert found.dtype == torch.bfloat16
        assert distance(found, due) <= 1.05 * distance(other, due) < 0.02


def test_recomputation_changes_nothing() -> None:
    batch, module = routed(50, torch.float32), experts(LEAN, torch.float32)
    plain, recomputed = gradients(module, *batch), gradients(module, *batch, recompute=True)
    assert all(torch.equal(*pair) for pair in zip(plain, recomputed, strict=True))


def test_autocast_does_not_reach_it() -> None:
    batch, module = routed(50, torch.float32), experts(LEAN, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(*batch)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, module(*batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_expert_is_dequantised_to_the_same_bits(dtype: torch.dtype) -> None:
    for shape in ((3, 64, 128), (5, 64, 64), (3, 8, 24)):  # in the last, nested blocks of scales cross experts
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        packed, state = quantize_experts(weight)
        whole = dequantize_4bit(packed, state)
        stack = PackedExperts(packed, state)
        for expert in range(shape[0]):
            assert stack[expert].dtype == dtype
            assert torch.equal(stack[expert], whole[expert])


def test_only_experts_with_tokens_are_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    get = PackedExperts.__getitem__

    def counted(self: PackedExperts, expert: int) -> torch.Tensor:
        asked.append(expert)
        return get(self, expert)

    monkeypatch.setattr(PackedExperts, "__getitem__", counted)
    hidden, _, weights = routed(4, torch.float32)
    index = torch.tensor([[0, 2, 7]] * 4)
    experts(LEAN, torch.float32, packed=True)(hidden, index, weights)
    assert asked == [0, 0, 2, 2, 7, 7]


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
    """Beside input, weights and indices, only what the first projection gave."""
    hidden, index, weights = routed(100, torch.float32)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        experts(LEAN, torch.float32, packed=True)(hidden.requires_grad_(), index, weights)
    numbers = sum(tensor.numel() for tensor in saved)
    assert numbers == hidden.numel() + 2 * index.numel() + index.numel() * 2 * WIDTH
