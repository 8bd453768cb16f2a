"""Linear layers in NF4 give the products of their dequantised weight, few rows or many, and keep nothing."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import nn

from aria_finetune.model import packed_linear
from aria_finetune.model.loading import load_model
from aria_finetune.model.nf4 import put_linear, quantize_linear
from aria_finetune.model.packed_linear import FEW_ROWS, TILE_ROWS, PackedLinear, install_packed_linears

OUT, IN = 96, 128


def weight(dtype: torch.dtype, out: int = OUT, width: int = IN) -> torch.Tensor:
    return (torch.randn(out, width, generator=torch.Generator().manual_seed(0)) * 0.1).to(dtype)


def linear(dtype: torch.dtype, out: int = OUT, width: int = IN) -> PackedLinear:
    layer = PackedLinear(width, out, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    put_linear(layer, *quantize_linear(weight(dtype, out, width)))
    return layer


def rows(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, count, IN, generator=torch.Generator().manual_seed(1)).to(dtype)


def dequantised(layer: PackedLinear) -> torch.Tensor:
    """In fp64, rounded to fp32 only."""
    state = layer.weight.quant_state
    exact = bnb.functional.QuantState.from_dict(state.as_dict(packed=True), torch.device("cpu"))
    exact.dtype = torch.float32
    return dequantize_4bit(layer.weight.data, exact).double()


def upstream(count: int) -> torch.Tensor:
    return torch.randn(1, count, OUT, generator=torch.Generator().manual_seed(2))


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    return float((found.double() - due.double()).norm() / due.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 9, FEW_ROWS, FEW_ROWS + 1, TILE_ROWS + 3])
@pytest.mark.parametrize("piece_bytes", [packed_linear.LARGEST_PIECE_BYTES, 5 * IN * 4])
def test_products_and_gradients(
    monkeypatch: pytest.MonkeyPatch, count: int, dtype: torch.dtype, piece_bytes: int
) -> None:
    monkeypatch.setattr(packed_linear, "LARGEST_PIECE_BYTES", piece_bytes)
    layer, x = linear(dtype), rows(count, dtype).requires_grad_()
    output = layer(x)
    (gradient,) = torch.autograd.grad(output, x, upstream(count).to(dtype))
    assert output.dtype == gradient.dtype == dtype
    exact = dequantised(layer)
    tolerance = 1e-6 if dtype == torch.float32 else 0.003
    assert distance(output.detach(), x.detach().double() @ exact.T) < tolerance
    assert distance(gradient, upstream(count).to(dtype).double() @ exact) < tolerance


def test_it_is_no_further_from_the_truth_than_bitsandbytes() -> None:
    layer, x = linear(torch.bfloat16), rows(300, torch.bfloat16)
    other = bnb.nn.Linear4bit(IN, OUT, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
    put_linear(other, *quantize_linear(weight(torch.bfloat16)))
    other.support_avx512bf16_for_cpu = False
    due = x.double() @ dequantised(layer).T
    assert distance(layer(x), due) <= 1.05 * distance(other(x), due)


def test_it_computes_in_its_own_dtype_whatever_comes_in() -> None:
    layer, x = linear(torch.bfloat16), rows(5, torch.float32)
    output = layer(x)
    assert output.dtype == torch.float32
    assert torch.equal(output, layer(x.bfloat16()).float())


def test_autocast_does_not_reach_it() -> None:
    layer, x = linear(torch.float32), rows(300, torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        (gradient,) = torch.autograd.grad(output, x, upstream(300))
    assert torch.equal(output, layer(x))
    assert torch.equal(gradient, torch.autograd.grad(layer(x), x, upstream(300))[0])


def test_nothing_is_kept() -> None:
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear(torch.bfloat16)(rows(300, torch.bfloat16).requires_grad_())
    assert saved == []


def test_rows_that_are_no_whole_blocks_are_left_to_bitsandbytes() -> None:
    layer, x = linear(torch.float32, width=96), torch.ones(1, 3, 96)
    other = bnb.nn.Linear4bit(96, OUT, bias=False, compute_dtype=torch.float32, quant_type="nf4", device="meta")
    put_linear(other, *quantize_linear(weight(torch.float32, width=96)))
    other.support_avx512bf16_for_cpu = layer.support_avx512bf16_for_cpu = False
    assert torch.equal(layer(x), other(x))


def test_linears_of_a_model_are_replaced_and_others_are_not() -> None:
    model = nn.ModuleDict(
        {
            "packed": bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", device="meta"),
            "biased": bnb.nn.Linear4bit(64, 64, bias=True, quant_type="nf4", device="meta"),
            "dense": nn.Linear(64, 64, bias=False, device="meta"),
        }
    )
    install_packed_linears(model)
    kinds = {name: type(module) for name, module in model.items()}
    assert kinds == {"packed": PackedLinear, "biased": bnb.nn.Linear4bit, "dense": nn.Linear}


def test_adapters_take_it_for_what_it_is() -> None:
    model = nn.Sequential(linear(torch.bfloat16))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["0"]))  # type: ignore[arg-type]
    assert isinstance(wrapped.base_model.model[0], LoraLinear4bit)


def test_all_linears_of_a_loaded_decoder_are_these(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder)).model
    packed = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(packed) == 7 * model.config.text_config.num_hidden_layers
    assert all(type(module) is PackedLinear and not module.support_avx512bf16_for_cpu for module in packed)
    assert not any(module.weight.requires_grad for module in packed)
