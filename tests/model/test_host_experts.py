"""Experts that stay in host memory: the same bits as on the device, copied when and as often as they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch.utils.checkpoint import checkpoint
from transformers import AriaTextConfig
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.model.components import components
from aria_finetune.model.experts import LEAN
from aria_finetune.model.grouped_experts import GROUPED
from aria_finetune.model.holding import Holding
from aria_finetune.model.host_experts import Ferry, HostExperts, connect_experts, put_on_host
from aria_finetune.model.loading import LoadedModel, load_model
from aria_finetune.model.nf4 import EXPERT_TENSORS, HOST, expert_state, put_experts, quantize_experts
from aria_finetune.quantization import quantize

LAYERS, EXPERTS, TOP_K, HIDDEN, WIDTH = 5, 8, 3, 64, 32
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def layers(*, host: bool, device: str = "cpu") -> torch.nn.ModuleList:
    """Layers of packed experts, each with weights of its own."""
    config = AriaTextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, moe_num_experts=EXPERTS, moe_topk=TOP_K, num_attention_heads=4
    )
    config._experts_implementation = LEAN
    modules = torch.nn.ModuleList(AriaExperts(config).requires_grad_(requires_grad=False) for _ in range(LAYERS))
    generator = torch.Generator().manual_seed(0)
    for module in modules:
        for name in EXPERT_TENSORS:
            weight = torch.randn(getattr(module, name).shape, generator=generator) * 0.2
            (put_on_host if host else put_experts)(module, name, *quantize_experts(weight.to(device)))
    return modules


def gradients(
    modules: torch.nn.ModuleList, *, recompute: bool, batches: int = 1, device: str = "cpu"
) -> list[torch.Tensor]:
    """Outputs, and gradients of hidden states and routing weights, of some batches one after the other."""
    generator = torch.Generator().manual_seed(1)
    found: list[torch.Tensor] = []
    for _ in range(batches):
        hidden = torch.randn(20, HIDDEN, generator=generator).to(device).requires_grad_()
        top, index = torch.randn(20, EXPERTS, generator=generator).to(device).topk(TOP_K)
        weights = top.softmax(-1).requires_grad_()
        output = hidden
        for module in modules:
            change = (
                checkpoint(module, output, index, weights, use_reentrant=False)
                if recompute
                else module(output, index, weights)
            )
            output = output + change
        output.square().sum().backward()
        assert hidden.grad is not None
        assert weights.grad is not None
        found += [output.detach(), hidden.grad, weights.grad]
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recompute", [False, True])
def test_outputs_and_gradients_are_the_same_to_the_bit(recompute: bool, device: str) -> None:
    on_host = layers(host=True, device=device)
    connect_experts(on_host, device)
    found = gradients(on_host, recompute=recompute, batches=2, device=device)
    due = gradients(layers(host=False, device=device), recompute=recompute, batches=2, device=device)
    assert all(torch.equal(*pair) for pair in zip(found, due, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_batch_copies_every_layer_about_twice(recompute: bool) -> None:
    """Forward and backward share the two layers in between; so do one batch and the next."""
    on_host = layers(host=True)
    ferry = connect_experts(on_host, "cpu")
    (size,) = {len(module.__dict__[HOST].bytes) for module in on_host}
    counts = []
    for _ in range(3):
        before = ferry.copied_bytes
        gradients(on_host, recompute=recompute)
        counts.append((ferry.copied_bytes - before) // size)
    assert counts == [LAYERS + LAYERS - 2, 2 * (LAYERS - 2), 2 * (LAYERS - 2)]


def plain(number: int, size: int = 1) -> HostExperts:
    """A layer that is known by its values."""
    return HostExperts({"gate_up_proj": quantize_experts(torch.full((size, 64, 64), float(number + 1)))})


def test_the_next_layer_is_there_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [plain(number) for number in range(6)]
    ferry = Ferry(held, "cpu")
    asked: list[tuple[int, str]] = []
    copy = Ferry._copy

    def told(self: Ferry, number: int, berth: object) -> None:
        asked.append((number, "waited for" if number == self._last else "ahead"))
        copy(self, number, berth)  # type: ignore[arg-type]

    monkeypatch.setattr(Ferry, "_copy", told)
    for number in [0, 1, 2, 3, 4, 5, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0, 0, 1, 2]:
        stack = held[number].read(ferry.fetch(number))["gate_up_proj"]
        assert (dequantize_4bit(*stack) - (number + 1)).abs().max() < 1e-6
    assert asked[0] == (0, "waited for")
    assert asked[1:] == [(number, "ahead") for number in (1, 2, 3, 4, 5, 3, 2, 1, 0, 2, 3)]


def test_a_layer_that_was_not_foreseen_is_waited_for() -> None:
    held = [plain(number) for number in range(6)]
    ferry = Ferry(held, "cpu")
    for number in [0, 5, 2, 2, 4, 0, 1, 3]:
        stack = held[number].read(ferry.fetch(number))["gate_up_proj"]
        assert (dequantize_4bit(*stack) - (number + 1)).abs().max() < 1e-6


def test_one_layer_is_enough() -> None:
    held = [plain(3)]
    ferry = Ferry(held, "cpu")
    for _ in range(3):
        assert (dequantize_4bit(*held[0].read(ferry.fetch(0))["gate_up_proj"]) - 4).abs().max() < 1e-6
    assert ferry.copied_bytes == len(held[0].bytes)


def test_layers_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="not of one size"):
        Ferry([plain(0), plain(1, size=2)], "cpu")


def test_without_a_ferry_nothing_is_computed() -> None:
    with pytest.raises(RuntimeError, match="nothing brings them to the device"):
        gradients(layers(host=True), recompute=False)


def test_a_move_of_the_model_does_not_move_them() -> None:
    """Meta stands for a device: what `to` reaches would lose its values."""
    modules = layers(host=True)
    before = [expert_state(module, name) for module in modules for name in EXPERT_TENSORS]
    modules.to("meta")
    assert not list(modules.parameters())
    for found, due in zip([expert_state(m, n) for m in modules for n in EXPERT_TENSORS], before, strict=True):
        assert found is not None
        assert due is not None
        assert found[0].device.type == found[1].absmax.device.type == "cpu"
        assert torch.equal(found[0], due[0])


@pytest.mark.parametrize("implementation", [LEAN, GROUPED])
def test_of_one_token_only_its_experts_are_copied(implementation: str) -> None:
    """As when answers are generated; then all of them again, from buffers that were half filled."""
    on_host, on_device = layers(host=True), layers(host=False)
    ferry = connect_experts(on_host, "cpu")
    for module in (*on_host, *on_device):
        module.config._experts_implementation = implementation
    generator = torch.Generator().manual_seed(2)
    (size,) = {len(module.__dict__[HOST].bytes) for module in on_host}
    counts = []
    for tokens in (30, 1, 1, 2, 30, 1):
        hidden = torch.randn(tokens, HIDDEN, generator=generator)
        top, index = torch.randn(tokens, EXPERTS, generator=generator).topk(TOP_K)
        before = ferry.copied_bytes
        for mine, other in zip(on_host, on_device, strict=True):
            with torch.no_grad():
                found, due = (module(hidden, index, top.softmax(-1)) for module in (mine, other))
            assert torch.equal(found, due)
        counts.append(ferry.copied_bytes - before)
    # One of the layers that the 30 tokens left in the buffers stays there whole; tables that all experts share are small.
    for copied, tokens in zip(counts, (30, 1, 1, 2, 30, 1), strict=True):
        if tokens == 1:
            assert copied < (LAYERS - 1) * size * (TOP_K / EXPERTS + 0.1)
        if tokens == 2:
            assert copied < (LAYERS - 1) * size * (2 * TOP_K / EXPERTS + 0.1)


# The whole model


def loaded(path: str | Path, home: str) -> LoadedModel:
    return load_model(str(path), implementation=LEAN, holding=Holding(experts=home))  # type: ignore[arg-type]


@pytest.mark.parametrize("quantised", [False, True])
def test_a_loaded_model(tiny_folder: Path, tmp_path: Path, ids: torch.Tensor, quantised: bool) -> None:
    if quantised:
        quantize(str(tiny_folder), tmp_path / "nf4")
    path = tmp_path / "nf4" if quantised else tiny_folder
    on_host, on_device = loaded(path, "host"), loaded(path, "device")
    for name in EXPERT_TENSORS:
        for mine, other in zip(
            *(model.model.model.language_model.layers for model in (on_host, on_device)), strict=True
        ):
            found, due = expert_state(mine.mlp.experts, name), expert_state(other.mlp.experts, name)
            assert found is not None
            assert due is not None
            assert torch.equal(found[0], due[0])
            assert torch.equal(dequantize_4bit(*found), dequantize_4bit(*due))
    with torch.no_grad():
        assert torch.equal(on_host.model(input_ids=ids).logits, on_device.model(input_ids=ids).logits)


def test_the_table_says_where_they_are(tiny_folder: Path) -> None:
    on_host = {part.name: part for part in loaded(tiny_folder, "host").components}
    on_device = {part.name: part for part in loaded(tiny_folder, "device").components}
    experts, buffers = on_host.pop("routed experts"), on_host.pop("expert buffers")
    assert (experts.home, experts.bytes) == ("host", on_device["routed experts"].bytes)
    assert (experts.parameters, experts.dtype) == (on_device["routed experts"].parameters, "nf4")
    # Two layers, which are all that the tiny Aria has; tensors begin at multiples of 256 bytes.
    assert (buffers.home, buffers.parameters) == ("device", 0)
    assert experts.bytes <= buffers.bytes <= experts.bytes + 2 * 12 * 256
    assert all(part.home == "device" for part in on_host.values())
    del on_device["routed experts"]
    assert on_host == on_device


def test_the_buffers_are_counted_once(tiny_folder: Path) -> None:
    model = loaded(tiny_folder, "host").model
    ferry = model.model.language_model.layers[0].mlp.experts.__dict__[HOST].ferry
    assert [part.bytes for part in components(model) if part.name == "expert buffers"] == [ferry.bytes]


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_what_can_not_be(implementation: str) -> None:
    with pytest.raises(ValueError, match="takes all experts of a layer at once"):
        load_model("tiny", implementation=implementation, holding=Holding(experts="host"))
    with pytest.raises(ValueError, match="need experts in NF4"):
        load_model("tiny", experts="bf16", implementation=LEAN, holding=Holding(experts="host"))
