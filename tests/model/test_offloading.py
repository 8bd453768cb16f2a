"""Inputs of decoder layers wait in host memory: they are all that goes there, and no gradient changes."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers.models.aria.modeling_aria import AriaTextDecoderLayer

from aria_finetune.model import offloading
from aria_finetune.model.experts import LEAN
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora
from aria_finetune.model.offloading import LayerInputs

LAYERS, HIDDEN = 2, 64
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def adapted(folder: Path, *, checkpointing: bool = True, device: str = "cpu") -> PeftModel:
    loaded = load_model(str(folder), implementation=LEAN, device=device).model
    model = add_lora(loaded, LoraPlan(dropout=0), base_name="tiny", seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter_state(model).items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    if checkpointing:
        model.enable_input_require_grads()
        loaded.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def gradients(model: PeftModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits.float().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in adapter_state(model).items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_the_same_to_the_bit(tiny_folder: Path, ids: torch.Tensor, device: str) -> None:
    plain, offloaded = adapted(tiny_folder, device=device), adapted(tiny_folder, device=device)
    LayerInputs(offloaded)
    due = gradients(plain, ids)
    for _ in range(2):
        found = gradients(offloaded, ids)
        assert all(torch.equal(found[name], gradient) for name, gradient in due.items())
    assert all(gradient.abs().max() > 0 for gradient in due.values())


def test_inputs_are_seen_and_nothing_else(
    tiny_folder: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_folder)
    given: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, AriaTextDecoderLayer):
            module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach().clone()))
    seen: list[torch.Tensor] = []
    to_host = LayerInputs._to_host

    def told(self: LayerInputs, tensor: torch.Tensor) -> Any:
        seen.append(tensor.detach().clone())
        return to_host(self, tensor)

    monkeypatch.setattr(LayerInputs, "_to_host", told)
    inputs = LayerInputs(model)
    gradients(model, ids)
    assert inputs.tensors == len(seen) == len(given) == LAYERS
    assert all(torch.equal(*pair) for pair in zip(seen, given, strict=True))
    assert inputs.bytes == LAYERS * ids.numel() * HIDDEN * 2


def test_what_was_offloaded_is_let_go_on_the_device(tiny_folder: Path, ids: torch.Tensor) -> None:
    """Between forward and backward nothing holds the input of the second layer but the copy."""
    held: dict[bool, bool] = {}
    for offload in (False, True):
        model = adapted(tiny_folder)
        if offload:
            LayerInputs(model)
        second = [module for module in model.modules() if isinstance(module, AriaTextDecoderLayer)][1]
        watched: list[weakref.ref[Any]] = []
        second.register_forward_pre_hook(
            lambda _, inputs, watched=watched: watched.append(weakref.ref(inputs[0].untyped_storage()))  # type: ignore[misc]
        )
        output = model(input_ids=ids, use_cache=False).logits
        gc.collect()
        held[offload] = storage_is_alive(watched[0])
        del output
    assert held == {False: True, True: False}


def storage_is_alive(reference: weakref.ref[Any]) -> bool:
    return reference() is not None


def test_an_evaluation_offloads_nothing(tiny_folder: Path, ids: torch.Tensor) -> None:
    model = adapted(tiny_folder).eval()
    inputs = LayerInputs(model)
    with torch.no_grad():
        model(input_ids=ids)
    assert inputs.tensors == 0


def test_without_checkpointing_it_says_so(tiny_folder: Path, ids: torch.Tensor) -> None:
    model = adapted(tiny_folder, checkpointing=False)
    LayerInputs(model)
    with pytest.raises(RuntimeError, match="it is not checkpointed"):
        gradients(model, ids)


def test_a_layer_that_raises_leaves_no_hooks_behind(
    tiny_folder: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_folder)
    inputs = LayerInputs(model)
    layer = next(module for module in model.modules() if isinstance(module, AriaTextDecoderLayer))

    def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError

    with monkeypatch.context() as broken:
        broken.setattr(layer.mlp, "forward", fail)
        with pytest.raises(ArithmeticError):
            gradients(model, ids)
    before = inputs.tensors
    torch.ones(3, requires_grad=True).square().sum().backward()
    assert inputs.tensors == before


def test_trl_still_can_not_do_it_here() -> None:
    """When this fails, see whether TRL's own offloading is fit by now (module docstring)."""
    from trl.models.activation_offloading import OffloadActivations  # noqa: PLC0415

    assert "TRL's own" in (offloading.__doc__ or "")
    if torch.cuda.is_available():
        pytest.skip("it is built on a GPU")
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'type'"):
        OffloadActivations()
