"""Adapters on the shared experts: their gradients are those of W + delta in fp64, and the routed experts are computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from aria_finetune.model import experts as experts_module
from aria_finetune.model.experts import LEAN
from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora
from aria_finetune.model.packed_linear import PackedLinear, weight_of
from aria_finetune.model.shared_experts import start

SCALING = 8 / 4
NAMES = ("gate_proj", "up_proj", "down_proj")


def adapted(folder: Path, experts: Experts, fill: Callable[..., object]) -> torch.nn.Module:
    dtype = torch.bfloat16 if experts == "bf16" else torch.float32
    base = load_model(str(folder), experts=experts, dtype=dtype, implementation=LEAN).model
    model = add_lora(base, LoraPlan(("shared_experts",), rank=4, alpha=8, dropout=0), base_name="tiny", seed=0)
    fill(model, deviation=0.1)
    return model


def stored(layer: LoraLayer) -> torch.Tensor:
    """The weight (out, in) beneath an adapter, fp64, as it is multiplied by."""
    base = layer.get_base_layer()
    if isinstance(base, PackedLinear):
        weight = weight_of(base)
        return weight.read(0, weight.shape[0], torch.float32).double()
    return base.weight.detach().double()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("experts", "tolerance"), [("nf4", 1e-6), ("fp32", 1e-6), ("bf16", 1e-2)])
def test_gradients_are_those_of_a_dense_delta(
    tiny_folder: Path, pretend_trained: Callable[..., object], experts: Experts, tolerance: float, recompute: bool
) -> None:
    model = adapted(tiny_folder, experts, pretend_trained)
    mlp = model.get_submodule("base_model.model.model.language_model.layers.1.mlp.shared_experts")
    dtype = torch.bfloat16 if experts == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 150, 64, generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(2, 150, 64, generator=generator).to(dtype)
    output = checkpoint(lambda x: start(mlp, x)(), hidden, use_reentrant=False) if recompute else start(mlp, hidden)()
    output.backward(upstream)

    exact = hidden.detach().double().requires_grad_()
    pairs = {
        name: [
            getattr(getattr(mlp, name), f"lora_{matrix}")["default"].weight.detach().double().requires_grad_()
            for matrix in "AB"
        ]
        for name in NAMES
    }
    gate, up, down = (stored(getattr(mlp, name)) + SCALING * pairs[name][1] @ pairs[name][0] for name in NAMES)
    due = (functional.silu(exact @ gate.T) * (exact @ up.T)) @ down.T
    due.backward(upstream.double())

    def distance(found: torch.Tensor, other: torch.Tensor | None) -> float:
        assert other is not None
        return float((found.detach().double() - other.detach()).norm() / other.detach().norm())

    assert output.dtype == dtype
    assert distance(output, due) < tolerance
    assert hidden.grad is not None
    assert distance(hidden.grad, exact.grad) < tolerance
    for name in NAMES:
        for matrix, reference in zip("AB", pairs[name], strict=True):
            found = getattr(getattr(mlp, name), f"lora_{matrix}")["default"].weight
            assert found.dtype == found.grad.dtype == torch.float32
            assert distance(found.grad, reference.grad) < tolerance, f"{name} {matrix}"


def test_a_checkpointed_layer_computes_its_routed_experts_once(
    tiny_folder: Path, pretend_trained: Callable[..., object], ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the shared experts keep for their adapters is kept before the routed experts are come to."""
    computed: list[torch.nn.Module] = []
    computation = experts_module._COMPUTATION

    def counted(module: torch.nn.Module, *batch: torch.Tensor) -> torch.Tensor:
        computed.append(module)
        return computation.output(module, *batch)  # type: ignore[arg-type]

    monkeypatch.setattr(experts_module, "_COMPUTATION", replace(computation, output=counted))

    def trained(*, checkpointing: bool) -> dict[str, torch.Tensor | None]:
        model = adapted(tiny_folder, "nf4", pretend_trained)
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        computed.clear()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        assert len(computed) == len(set(computed)) == 2
        return {name: parameter.grad for name, parameter in adapter_state(model).items()}

    due, found = trained(checkpointing=False), trained(checkpointing=True)
    assert len(due) == 2 * 3 * 2
    for name, gradient in due.items():
        assert gradient is not None
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, found[name])  # type: ignore[arg-type]
