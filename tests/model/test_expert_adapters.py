"""Adapters of routed experts: gradients of W + delta in fp64, PEFT's names and start, and no delta of W's size anywhere."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import AriaForConditionalGeneration, AriaTextConfig
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.errors import UserError
from aria_finetune.model import experts as experts_module
from aria_finetune.model import grouped_experts
from aria_finetune.model.expert_adapters import ExpertLora
from aria_finetune.model.experts import LEAN
from aria_finetune.model.grouped_experts import GROUPED, limit_experts
from aria_finetune.model.host_experts import connect_experts, put_on_host
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora, saved_names
from aria_finetune.model.nf4 import EXPERT_TENSORS, put_experts, quantize_experts

EXPERTS, TOP_K, HIDDEN, WIDTH, RANK = 16, 3, 64, 32, 4
CONFIG = LoraConfig(r=RANK, lora_alpha=8)
SCALING = 8 / RANK
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Gradients = dict[str, torch.Tensor]


def adapted(
    implementation: str, dtype: torch.dtype, *, held: str = "dense", at_a_time: int | None = None, device: str = "cpu"
) -> ExpertLora:
    """Experts that are dense, nf4, or nf4 on the host, with adapters whose B is not zero."""
    text = AriaTextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, moe_num_experts=EXPERTS, moe_topk=TOP_K, num_attention_heads=4
    )
    text._experts_implementation = implementation
    module: nn.Module = AriaExperts(text).to(device, dtype).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for name in EXPERT_TENSORS:
        parameter = getattr(module, name)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if held != "dense":
            (put_on_host if held == "host" else put_experts)(module, name, *quantize_experts(parameter.data))
    if held == "host":
        connect_experts(nn.ModuleList([module]), device)
    if at_a_time is not None:
        limit_experts(module, at_a_time)
    for name in EXPERT_TENSORS:
        module = ExpertLora(module, name, CONFIG, generator, torch.device(device))
        module.lora_B["default"].weight.data.copy_(
            torch.randn(module.out_features, RANK * EXPERTS, generator=generator) * 0.2
        )
    assert isinstance(module, ExpertLora)
    return module


def routed(tokens: int, dtype: torch.dtype, *, busy: int = EXPERTS, device: str = "cpu") -> Batch:
    """Hidden states, indices and weights; only the first `busy` experts get tokens."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    top, index = torch.randn(tokens, busy, generator=generator).topk(TOP_K)
    return hidden.to(device, dtype), index.to(device), top.softmax(-1).to(device, dtype)


def all_to_one(tokens: int, dtype: torch.dtype) -> Batch:
    hidden, index, weights = routed(tokens, dtype)
    return hidden, torch.full_like(index, 5), weights


def upstream(output: torch.Tensor) -> torch.Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)


def gradients(module: ExpertLora, batch: Batch, *, recompute: bool = False) -> Gradients:
    """The output, and gradients of tokens, routing weights and all factors."""
    module.zero_grad()
    tokens, weights = batch[0].clone().requires_grad_(), batch[2].clone().requires_grad_()
    output = (
        checkpoint(module, tokens, batch[1], weights, use_reentrant=False)
        if recompute
        else module(tokens, batch[1], weights)
    )
    output.backward(upstream(output))
    found = {"output": output.detach(), "tokens": tokens.grad, "weights": weights.grad}
    found |= {name: parameter.grad for name, parameter in module.named_parameters() if "lora_" in name}
    assert all(gradient is not None for gradient in found.values())
    return found  # type: ignore[return-value]


def truth(module: ExpertLora, batch: Batch) -> Gradients:
    """The same by fp64 autograd through W + delta, which is made for every expert as PEFT makes it."""
    plain = {
        "gate_up_proj": module.base_layer.get_base_layer(),
        "down_proj": module.get_base_layer(),
    }
    factors = {
        name: parameter.detach().cpu().double().requires_grad_()
        for name, parameter in module.named_parameters()
        if "lora_" in name
    }
    weight = {}
    for name, prefix in (("gate_up_proj", "base_layer."), ("down_proj", "")):
        a = factors[f"{prefix}lora_A.default.weight"].reshape(EXPERTS, RANK, -1)
        b = factors[f"{prefix}lora_B.default.weight"].reshape(-1, RANK, EXPERTS)
        stored = stored_weight(plain[name], name)
        weight[name] = stored + SCALING * torch.einsum("o r e, e r i -> e i o", b, a)
    tokens, index, weights = (batch[0].cpu().double(), batch[1].cpu(), batch[2].cpu().double())
    tokens.requires_grad_()
    weights.requires_grad_()
    output = torch.zeros_like(tokens)
    for token in range(len(tokens)):
        for place in range(TOP_K):
            expert = int(index[token, place])
            gate, up = (tokens[token] @ weight["gate_up_proj"][expert]).chunk(2, dim=-1)
            made = (functional.silu(gate) * up) @ weight["down_proj"][expert] * weights[token, place]
            output = output.index_add(0, torch.tensor([token]), made[None])
    output.backward(upstream(torch.empty(output.shape, dtype=batch[0].dtype)).double())
    found = {"output": output.detach(), "tokens": tokens.grad, "weights": weights.grad}
    return found | {name: factor.grad for name, factor in factors.items()}  # type: ignore[dict-item]


def stored_weight(experts: AriaExperts, name: str) -> torch.Tensor:
    """fp64, of dense or packed experts, wherever they are."""
    host = experts.__dict__.get("host_experts")
    if host is None:
        return getattr(experts, name).detach().cpu().double()
    weight: torch.Tensor = dequantize_4bit(*host.stacks[name])
    return weight.double()


def assert_all_close(found: Gradients, due: Gradients, tolerance: float) -> None:
    assert found.keys() == due.keys()
    assert len(found) == 3 + 4
    for name, value in found.items():
        distance = (value.cpu().double() - due[name]).norm() / due[name].norm()
        assert distance < tolerance, f"{name} is off by {distance:.1e}"


BATCHES: dict[str, Callable[[torch.dtype], Batch]] = {
    "one token": lambda dtype: routed(1, dtype),
    "all experts": lambda dtype: routed(37, dtype),
    "idle experts": lambda dtype: routed(41, dtype, busy=5),
    "all to one": lambda dtype: all_to_one(13, dtype),
}
WAYS = [(LEAN, None), (GROUPED, None), (GROUPED, 3)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("held", ["dense", "nf4", "host"])
@pytest.mark.parametrize(("implementation", "at_a_time"), WAYS)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_gradients_are_those_of_a_dense_delta_in_fp32(
    batch: Callable[[torch.dtype], Batch], implementation: str, at_a_time: int | None, held: str, device: str
) -> None:
    module = adapted(implementation, torch.float32, held=held, at_a_time=at_a_time, device=device)
    hidden, index, weights = batch(torch.float32)
    on_device = hidden.to(device), index.to(device), weights.to(device)
    plain = gradients(module, on_device)
    assert_all_close(plain, truth(module, on_device), 1e-6)
    recomputed = gradients(module, on_device, recompute=True)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("held", ["dense", "nf4"])
@pytest.mark.parametrize(("implementation", "at_a_time"), WAYS)
def test_gradients_in_bf16(implementation: str, at_a_time: int | None, held: str, device: str) -> None:
    module = adapted(implementation, torch.bfloat16, held=held, at_a_time=at_a_time, device=device)
    batch = routed(60, torch.bfloat16, device=device)
    found = gradients(module, batch)
    assert {name: value.dtype for name, value in found.items() if "lora_" not in name} == dict.fromkeys(
        ("output", "tokens", "weights"), torch.bfloat16
    )
    assert {value.dtype for name, value in found.items() if "lora_" in name} == {torch.float32}
    assert_all_close(found, truth(module, batch), 1e-2)


@pytest.mark.parametrize(("implementation", "at_a_time"), WAYS)
def test_an_expert_without_a_token_has_no_gradient(implementation: str, at_a_time: int | None) -> None:
    module = adapted(implementation, torch.float32, held="nf4", at_a_time=at_a_time)
    found = gradients(module, routed(41, torch.float32, busy=5))
    for prefix in ("", "base_layer."):
        a = found[f"{prefix}lora_A.default.weight"].view(EXPERTS, -1)
        b = found[f"{prefix}lora_B.default.weight"].view(-1, EXPERTS).T
        for gradient in (a, b):
            assert gradient[:5].abs().amax(1).min() > 0
            assert not gradient[5:].any()


def test_an_expert_of_many_tokens_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = adapted(LEAN, torch.float32), routed(50, torch.float32, busy=4)
    due = truth(module, batch)
    monkeypatch.setattr(experts_module, "MOST_ROWS", 7)
    assert_all_close(gradients(module, batch), due, 1e-6)


@pytest.mark.parametrize("implementation", [LEAN, GROUPED])
def test_switched_off_they_do_nothing(implementation: str) -> None:
    module, batch = adapted(implementation, torch.float32), routed(20, torch.float32)
    with torch.no_grad():
        bare = module.get_base_layer()(*batch)
        assert (module(*batch) - bare).abs().max() > 0.1
        module.enable_adapters(enabled=False)
        module.base_layer.enable_adapters(enabled=False)
        assert torch.equal(module(*batch), bare)


@pytest.mark.parametrize("implementation", [LEAN, GROUPED])
def test_an_update_between_forward_and_backward_is_noticed(implementation: str) -> None:
    module, batch = adapted(implementation, torch.float32), routed(20, torch.float32)
    output = module(*batch)
    with torch.no_grad():
        module.lora_A["default"].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_adapters_of_one_projection_alone_are_refused() -> None:
    inner = adapted(LEAN, torch.float32).base_layer
    with pytest.raises(TypeError, match="factors of gate_up_proj instead of gate_up_proj and down_proj"):
        inner(*routed(4, torch.float32))


class Sizes(TorchDispatchMode):
    """Counts the tensors that operations give, by how many values they have."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.counts[one.numel()] += 1
        return made


@pytest.mark.parametrize("held", ["dense", "nf4"])
@pytest.mark.parametrize("implementation", [LEAN, GROUPED])
def test_no_change_of_the_weights_is_ever_made(implementation: str, held: str) -> None:
    """Nor of two experts at once, nor of one in all; only the dequantised weights are as large as before."""
    module, batch = adapted(implementation, torch.float32, held=held), routed(6, torch.float32)
    least = (
        HIDDEN * WIDTH
    )  # of the smaller projection of one expert; rows, and factors of a layer, are smaller but for B

    def large(function: Callable[[], object]) -> Counter[int]:
        with Sizes() as sizes:
            function()
        return Counter({size: count for size, count in sizes.counts.items() if size >= least})

    factors = {parameter.numel() for name, parameter in module.named_parameters() if "lora_" in name}
    assert max(factors) < EXPERTS * least / 4
    tokens = batch[0].clone().requires_grad_()
    bare = copy.deepcopy(module.get_base_layer())
    module(*batch)  # the workspace that layers share grows once
    without = large(lambda: bare(tokens, batch[1], batch[2]).sum().backward())
    found = large(lambda: module(tokens, batch[1], batch[2]).sum().backward())
    assert {size for size in found if size not in factors} == {size for size in without if size not in factors}
    for size, count in without.items():
        if size not in factors:
            assert found[size] == count


@pytest.mark.parametrize("implementation", [LEAN, GROUPED])
def test_what_is_kept_for_the_backward_are_tokens_routing_and_the_factors_themselves(implementation: str) -> None:
    module, (hidden, index, weights) = adapted(implementation, torch.float32, held="nf4"), routed(50, torch.float32)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(hidden.requires_grad_(), index, weights)
    own = {parameter.data_ptr() for parameter in module.parameters()}
    others = [tensor for tensor in saved if tensor.data_ptr() not in own]
    assert len(saved) - len(others) == 4
    assert sum(tensor.numel() for tensor in others) == hidden.numel() + 2 * index.numel()


# In the whole model


@pytest.fixture
def with_bias() -> Callable[[nn.Module], None]:
    def fill(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05, generator=generator)

    return fill


@pytest.mark.parametrize(("implementation", "module"), [(LEAN, experts_module), (GROUPED, grouped_experts)])
def test_a_checkpointed_layer_computes_its_experts_once(
    implementation: str,
    module: Any,
    ids: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    with_bias: Callable[[nn.Module], None],
) -> None:
    """With all targets, under autocast; gradients are those without checkpointing, to the bit."""
    computed: list[object] = []
    computation = module._COMPUTATION

    def counted(*arguments: Any) -> torch.Tensor:
        computed.append(arguments[0])
        made: torch.Tensor = computation.output(*arguments)
        return made

    monkeypatch.setattr(module, "_COMPUTATION", replace(computation, output=counted))

    def trained(*, checkpointing: bool) -> Gradients:
        base = load_model("tiny", implementation=implementation).model
        plan = LoraPlan(("attention", "router", "shared_experts", "experts"), dropout=0)
        model = add_lora(base, plan, base_name="tiny", seed=0)
        with_bias(model)
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        computed.clear()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        assert len(computed) == len(set(map(id, computed))) == 2
        return {name: parameter.grad for name, parameter in adapter_state(model).items()}  # type: ignore[misc]

    due, found = trained(checkpointing=False), trained(checkpointing=True)
    assert len(due) == 2 * 2 * (4 + 1 + 3 + 2)
    for name, gradient in due.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(found[name], gradient), name


def test_they_start_as_pefts_do() -> None:
    """A by the same law within its expert's own number of inputs, B at zero; names and shapes are PEFT's."""
    model = add_lora(
        load_model("tiny", implementation=LEAN).model, LoraPlan(("experts",), rank=4), base_name="tiny", seed=0
    )
    plain = get_peft_model(
        AriaForConditionalGeneration.from_pretrained(load_model("tiny").checkpoint.folder),
        LoraConfig(r=4, target_modules=[], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    )
    ours, theirs = saved_names(model), saved_names(plain)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    for name, tensor in ours.items():
        if "lora_B" in name:
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert 0.98 * bound < tensor.detach().abs().max() <= bound
            assert abs(float(tensor.detach().std()) / (bound / 3**0.5) - 1) < 0.05
            assert abs(float(theirs[name].detach().std()) / float(tensor.detach().std()) - 1) < 0.05


def test_the_start_depends_on_the_seed_alone() -> None:
    def start(targets: tuple[Any, ...], seed: int) -> Gradients:
        model = add_lora(
            load_model("tiny", implementation=LEAN).model, LoraPlan(targets, rank=2), base_name="tiny", seed=seed
        )
        return {name: tensor.detach() for name, tensor in saved_names(model).items()}

    alone, beside, other = start(("experts",), 1), start(("experts", "attention"), 1), start(("experts",), 2)
    attention = start(("attention",), 1)
    assert all(torch.equal(beside[name], tensor) for name, tensor in (alone | attention).items())
    firsts = [name for name in alone if "lora_A" in name]
    assert not any(torch.equal(alone[name], other[name]) for name in firsts)
    for one, another in pairs(firsts):
        if alone[one].shape == alone[another].shape:
            assert not torch.equal(alone[one], alone[another])


def pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    return ((one, other) for place, one in enumerate(names) for other in names[:place])


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_ways_that_would_make_the_delta_are_refused(implementation: str) -> None:
    model = load_model("tiny", implementation=implementation).model
    with pytest.raises(UserError, match=f"experts that {implementation} computes can't have adapters") as caught:
        add_lora(model, LoraPlan(("experts",)), base_name="tiny", seed=0)
    assert "moe.implementation" in str(caught.value.fix)
