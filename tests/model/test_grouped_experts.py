"""Experts in a few kernels give the outputs and gradients of transformers' own, hold only what they need, and in what order."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AriaTextConfig
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.kernels.sorting import sort_by_expert
from aria_finetune.model import grouped_experts
from aria_finetune.model.grouped_experts import GROUPED, groups, limit_experts
from aria_finetune.model.holding import Holding
from aria_finetune.model.host_experts import connect_experts, put_on_host
from aria_finetune.model.loading import load_model
from aria_finetune.model.nf4 import EXPERT_TENSORS, put_experts, quantize_experts
from aria_finetune.model.workspace import workspace_of

EXPERTS, TOP_K, HIDDEN, WIDTH = 64, 6, 64, 32
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def experts(
    implementation: str,
    dtype: torch.dtype = torch.float32,
    *,
    held: str = "dense",
    at_a_time: int | None = None,
    device: str = "cpu",
) -> AriaExperts:
    """`held` is dense, nf4, or host."""
    config = AriaTextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, moe_num_experts=EXPERTS, moe_topk=TOP_K, num_attention_heads=4
    )
    config._experts_implementation = implementation
    module = AriaExperts(config).to(device, dtype).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for name in EXPERT_TENSORS:
        parameter = getattr(module, name)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if held != "dense":
            (put_on_host if held == "host" else put_experts)(module, name, *quantize_experts(parameter.data))
    if held == "host":
        connect_experts(torch.nn.ModuleList([module]), device)
    if at_a_time is not None:
        limit_experts(module, at_a_time)
    return module


def routed(tokens: int, dtype: torch.dtype = torch.float32, *, busy: int = EXPERTS, device: str = "cpu") -> Batch:
    """Hidden states, indices and weights; only the first `busy` experts get tokens, and all of them if they are `TOP_K`."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    top, index = torch.randn(tokens, busy, generator=generator).topk(TOP_K)
    return hidden.to(device, dtype), index.to(device), top.softmax(-1).to(device, dtype)


def all_to_one(tokens: int) -> Batch:
    """Every slot of every token is the same expert's."""
    hidden, index, weights = routed(tokens)
    return hidden, torch.full_like(index, 17), weights


def gradients(module: AriaExperts, batch: Batch, *, recompute: bool = False) -> tuple[torch.Tensor, ...]:
    """Output, and gradients of hidden states and routing weights, for one upstream gradient."""
    hidden, weights = batch[0].clone().requires_grad_(), batch[2].clone().requires_grad_()
    output = (
        checkpoint(module, hidden, batch[1], weights, use_reentrant=False)
        if recompute
        else module(hidden, batch[1], weights)
    )
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output))
    assert hidden.grad is not None
    assert weights.grad is not None
    return output.detach(), hidden.grad, weights.grad


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    return float((found.double() - due.double()).norm() / due.double().norm())


BATCHES: dict[str, Callable[[], Batch]] = {
    "one token": lambda: routed(1),
    "odd": lambda: routed(37),
    "idle experts": lambda: routed(41, busy=9),
    "all to six": lambda: routed(23, busy=TOP_K),
    "all to one": lambda: all_to_one(13),
}


@pytest.mark.parametrize("at_a_time", [None, 8])
@pytest.mark.parametrize("held", ["dense", "nf4"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_outputs_and_gradients_in_fp32(
    batch: Callable[[], Batch], held: str, at_a_time: int | None, device: str
) -> None:
    inputs = batch()
    on_device = inputs[0].to(device), inputs[1].to(device), inputs[2].to(device)
    due = gradients(experts("eager", held=held), inputs)
    for recompute in (False, True):
        module = experts(GROUPED, held=held, at_a_time=at_a_time, device=device)
        found = gradients(module, on_device, recompute=recompute)
        assert all(distance(one.cpu(), other) < 1e-6 for one, other in zip(found, due, strict=True))


@pytest.mark.parametrize("held", ["dense", "nf4"])
def test_in_bf16_it_is_no_further_from_the_truth_than_eager(held: str, device: str) -> None:
    """The truth: fp64 arithmetic on the same bf16 weights and inputs."""
    batch = routed(60, torch.bfloat16, device=device)
    eager = experts("eager", torch.bfloat16, held=held, device=device)
    exact = experts("eager", torch.float64)
    for name in EXPERT_TENSORS:
        getattr(exact, name).copy_(getattr(eager, name))
    truth = gradients(exact, (batch[0].cpu().double(), batch[1].cpu(), batch[2].cpu().double()))
    ours = gradients(experts(GROUPED, torch.bfloat16, held=held, device=device), batch)
    for found, other, due in zip(ours, gradients(eager, batch), truth, strict=True):
        assert found.dtype == torch.bfloat16
        assert distance(found, other) < 1e-2
        assert distance(found.cpu(), due) <= 1.05 * distance(other.cpu(), due)


@pytest.mark.parametrize("held", ["dense", "nf4"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_outputs_and_gradients_in_bf16(batch: Callable[[], Batch], held: str, device: str) -> None:
    hidden, index, weights = batch()
    inputs = hidden.to(device, torch.bfloat16), index.to(device), weights.to(device, torch.bfloat16)
    due = gradients(experts("eager", torch.bfloat16, held=held, device=device), inputs)
    for recompute in (False, True):
        found = gradients(experts(GROUPED, torch.bfloat16, held=held, device=device), inputs, recompute=recompute)
        assert all(distance(*pair) < 1e-2 for pair in zip(found, due, strict=True))


@pytest.mark.parametrize("held", ["dense", "nf4", "host"])
def test_some_experts_at_a_time_are_all_at_once_to_the_bit(held: str, device: str) -> None:
    """Where the tiles of products don't depend on it, which on a GPU they may."""
    batch = routed(50, busy=30, device=device)
    due = gradients(experts(GROUPED, held=held, device=device), batch)
    for at_a_time in (1, 7, 8, 64, 100):
        found = gradients(experts(GROUPED, held=held, at_a_time=at_a_time, device=device), batch)
        for one, other in zip(found, due, strict=True):
            assert torch.equal(one, other) if device == "cpu" else distance(one, other) < 1e-6


def test_experts_in_host_memory_are_those_on_the_device_to_the_bit(device: str) -> None:
    batch = routed(50, device=device)
    for recompute in (False, True):
        found = gradients(experts(GROUPED, held="host", device=device), batch, recompute=recompute)
        due = gradients(experts(GROUPED, held="nf4", device=device), batch)
        assert all(torch.equal(*pair) for pair in zip(found, due, strict=True))


def test_nothing_of_it_depends_on_chance(device: str) -> None:
    batch, module = (
        routed(80, torch.bfloat16, device=device),
        experts(GROUPED, torch.bfloat16, held="nf4", device=device),
    )
    first, second = gradients(module, batch), gradients(module, batch, recompute=True)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_inputs_that_are_not_contiguous(device: str) -> None:
    hidden, index, weights = routed(20, device=device)
    module = experts(GROUPED, device=device)
    strided = hidden.repeat(1, 2).view(20, 2, HIDDEN)[:, 0], index.T.contiguous().T, weights.T.contiguous().T
    assert torch.equal(module(*strided), module(hidden, index, weights))
    leaf = hidden.clone().requires_grad_()
    module(leaf, index, weights).sum().backward()  # of which the gradient is one number, expanded
    assert leaf.grad is not None
    other = hidden.clone().requires_grad_()
    (module(other, index, weights) * torch.ones_like(hidden)).sum().backward()
    assert torch.equal(leaf.grad, other.grad)


def test_autocast_does_not_reach_it(device: str) -> None:
    batch, module = routed(50, device=device), experts(GROUPED, device=device)
    with torch.autocast(device, torch.bfloat16):
        inside = module(*batch)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, module(*batch))


def test_experts_of_another_dtype_than_tokens() -> None:
    hidden, index, weights = routed(20)
    for held in ("dense", "nf4"):
        module = experts(GROUPED, torch.bfloat16, held=held)
        found = module(hidden, index, weights)
        due = experts("eager", held="dense")
        for name in EXPERT_TENSORS:
            getattr(due, name).copy_(getattr(module, name))
        assert found.dtype == torch.float32
        assert distance(found, due(hidden, index, weights)) < 1e-6


def test_a_second_backward_gives_the_same() -> None:
    hidden, index, weights = routed(10)
    output = experts(GROUPED)(hidden.requires_grad_(), index, weights).sum()
    first, second = (torch.autograd.grad(output, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("at_a_time", [None, 8])
def test_where_a_layer_is_checkpointed_they_are_unpacked_for_the_forward_and_for_the_backward_alone(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int | None
) -> None:
    """Twice a step, each projection of each expert that has tokens."""
    asked = counted(monkeypatch)
    _, index, _ = batch = routed(30, busy=20)
    gradients(experts(GROUPED, held="nf4", at_a_time=at_a_time), batch, recompute=True)
    assert sorted(asked) == sorted(4 * index.unique().tolist())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The experts that are unpacked from now on, in their order."""
    asked: list[int] = []
    unpack = grouped_experts.unpack_experts

    def told(stack: object, numbers: torch.Tensor, output: torch.Tensor) -> None:
        asked.extend(number for number in numbers.tolist() if number >= 0)
        unpack(stack, numbers, output)  # type: ignore[arg-type]

    monkeypatch.setattr(grouped_experts, "unpack_experts", told)
    return asked


def test_experts_that_are_trained_are_refused() -> None:
    module = experts(GROUPED).requires_grad_(requires_grad=True)
    with pytest.raises(RuntimeError, match="gate_up_proj is to be trained"):
        module(*routed(4))


def test_saved_tensors_are_few() -> None:
    """Tokens and routing."""
    hidden, index, weights = routed(100)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        experts(GROUPED, held="nf4")(hidden.requires_grad_(), index, weights)
    assert sum(tensor.numel() for tensor in saved) == hidden.numel() + 2 * index.numel()


@pytest.mark.parametrize("at_a_time", [None, 8])
def test_only_experts_with_tokens_are_unpacked(monkeypatch: pytest.MonkeyPatch, at_a_time: int | None) -> None:
    """In a generation of one token: six of 64."""
    asked = counted(monkeypatch)
    hidden, index, weights = routed(1)
    with torch.no_grad():
        experts(GROUPED, held="nf4", at_a_time=at_a_time)(hidden, index, weights)
    assert sorted(asked) == sorted(index.flatten().tolist() * 2)


def test_groups_are_of_experts_that_have_tokens() -> None:
    sorting = sort_by_expert(torch.tensor([[3, 0], [0, 5], [3, 5], [1, 0]]), 8)
    (everyone,) = groups(sorting, None)
    assert everyone.numbers.tolist() == [0, 1, -1, 3, -1, 5, -1, -1]
    assert everyone.ends.tolist() == [3, 4, 4, 6, 6, 8, 8, 8]
    assert everyone.rows == slice(0, 8)
    some = [(group.rows, group.numbers.tolist(), group.ends.tolist()) for group in groups(sorting, 3)]
    assert some == [(slice(0, 6), [0, 1, 3], [3, 4, 6]), (slice(6, 8), [5], [2])]


def test_layers_and_models_share_one_workspace() -> None:
    """Two models, evaluation between forward and backward, each as if it were alone."""
    gc.collect()  # of modules of other tests
    batch, other = routed(30), routed(12, busy=20)
    first, second = experts(GROUPED, held="nf4"), experts(GROUPED, held="nf4")
    alone = gradients(first, batch)
    hidden, weights = batch[0].clone().requires_grad_(), batch[2].clone().requires_grad_()
    output = first(hidden, batch[1], weights)
    with torch.inference_mode():
        second(*other)
        experts(GROUPED, torch.bfloat16, held="nf4")(*(t.bfloat16() if t.is_floating_point() else t for t in other))
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)))
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, alone[1])
    assert first.shared_workspace is second.shared_workspace
    assert first.shared_workspace.bytes == EXPERTS * HIDDEN * 2 * WIDTH * 4


def test_a_workspace_made_in_inference_mode_serves_training() -> None:
    module, batch = experts(GROUPED, held="nf4"), routed(30)
    with torch.inference_mode():
        module(*batch)
    found = gradients(module, batch)
    assert all(apart < 1e-6 for apart in map(distance, found, gradients(experts("eager", held="nf4"), batch)))


def test_a_workspace_goes_with_the_last_that_shares_it() -> None:
    gc.collect()  # of modules of other tests
    module = experts(GROUPED, torch.bfloat16, held="nf4", at_a_time=8)
    module(*routed(30, torch.bfloat16))
    held = module.shared_workspace
    assert held.bytes == 8 * HIDDEN * 2 * WIDTH * 2
    again = copy.deepcopy(module)
    assert again.shared_workspace is held
    cpu = torch.device("cpu")
    del module
    assert workspace_of(again, cpu, torch.bfloat16) is held
    del again, held
    gc.collect()
    assert workspace_of(torch.nn.Module(), cpu, torch.bfloat16).bytes == 0


def test_no_expert_at_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match="0 experts at a time"):
        experts(GROUPED, at_a_time=0)


@pytest.mark.parametrize("at_a_time", [None, 3])
@pytest.mark.parametrize("precision", ["nf4", "fp32"])
def test_the_whole_model(tiny_folder: Path, precision: str, ids: torch.Tensor, at_a_time: int | None) -> None:
    def logits(implementation: str, at_a_time: int | None = None) -> torch.Tensor:
        model = load_model(
            str(tiny_folder),
            experts=precision,  # type: ignore[arg-type]
            dtype=torch.float32,
            implementation=implementation,
            holding=Holding(experts_at_a_time=at_a_time),
        ).model
        assert model.config.text_config._experts_implementation == implementation
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids).logits
        return found

    assert (logits(GROUPED, at_a_time) - logits("grouped_mm")).abs().max() < 1e-4


def test_other_implementations_know_no_number_of_experts(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="lean does not compute some experts at a time"):
        load_model(str(tiny_folder), implementation="lean", holding=Holding(experts_at_a_time=8))
