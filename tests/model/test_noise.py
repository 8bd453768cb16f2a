"""NEFTune's noise: as large as the paper says, a row's own whatever is around it, on text alone, and in training only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AriaForConditionalGeneration

from aria_finetune.model.dropout import RowDropout, RowRandomness, assign_packed_rows, assign_rows, row_randomness
from aria_finetune.model.host_embedding import hold_embedding_on_host
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.model.noise import RowNoise, add_noise
from aria_finetune.model.vision import as_encoder_outputs

HIDDEN = 64
IMAGE = 9


def noise(alpha: float = 5.0) -> RowNoise:
    return RowNoise(alpha, RowRandomness()).train()


def padded(*lengths: int) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def drawn(module: RowNoise, seeds: list[int], *lengths: int) -> list[torch.Tensor]:
    """The noise of every row, (length, hidden) each."""
    mask = padded(*lengths)
    assign_rows(module, seeds, mask)
    output = module(torch.zeros(*mask.shape, HIDDEN))
    return [row[:length] for row, length in zip(output, lengths, strict=True)]


@pytest.mark.parametrize("length", [1, 50, 800])
def test_it_is_uniform_between_the_bounds_of_the_paper(length: int) -> None:
    (row,) = drawn(noise(7.0), [3], length)
    bound = 7 / math.sqrt(length * HIDDEN)
    assert row.abs().max() <= bound
    entries = length * HIDDEN
    # The moments of a uniform number u on (-1, 1): E u = 0, E u^2 = 1/3, E u^4 = 1/5; five deviations of their means.
    u = row.double() / bound
    assert abs(float(u.mean())) < 5 * math.sqrt(1 / 3 / entries)
    assert abs(float((u**2).mean()) - 1 / 3) < 5 * math.sqrt((1 / 5 - 1 / 9) / entries)
    assert float(u.max()) > 1 - 10 / entries * 2


def test_the_length_is_that_of_the_row_and_padding_has_none() -> None:
    module = noise()
    short, long = drawn(module, [1, 2], 4, 100)
    assert short.abs().max() > 4 * long.abs().max(), "bounds are as 5 to 1"
    assign_rows(module, [1, 2], padded(4, 100))
    assert not module(torch.zeros(2, 100, HIDDEN))[0, 4:].any()


def test_neighbours_padding_and_packing_change_no_bit() -> None:
    module = noise()
    seeds, lengths = [11, 12, 13], (8, 20, 5)
    together = drawn(module, seeds, *lengths)
    alone = [drawn(module, [seed], length)[0] for seed, length in zip(seeds, lengths, strict=True)]
    assign_packed_rows(module, seeds, lengths)
    packed = module(torch.zeros(1, 33, HIDDEN))[0].split(lengths)
    for row in range(3):
        assert torch.equal(alone[row], together[row])
        assert torch.equal(alone[row], packed[row])
    assert not torch.equal(drawn(module, [14], 8)[0], alone[0])


def test_the_noise_is_none_of_the_dropouts_and_does_not_touch_the_global_generator() -> None:
    module = noise()
    state = torch.get_rng_state()
    (row,) = drawn(module, [7], 40)
    assert torch.equal(torch.get_rng_state(), state)
    for number in range(3):
        dropout = RowDropout(0.5, number=number, rows=module.rows).train()
        kept = dropout(torch.ones(1, 40, HIDDEN))[0] != 0
        assert 0.4 < float((kept == (row > 0)).double().mean()) < 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_added_in_fp32_and_rounded_once(dtype: torch.dtype) -> None:
    module = noise()
    (row,) = drawn(module, [7], 40)
    x = torch.randn(1, 40, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = x.clone()
    assert torch.equal(module(x)[0], (x[0].float() + row).to(dtype))
    assert torch.equal(x, before)


def test_evaluation_has_none() -> None:
    x = torch.randn(1, 4, HIDDEN)
    assert noise().eval()(x) is x


def test_rows_that_are_not_known_are_refused() -> None:
    with pytest.raises(RuntimeError, match="the rows of a batch of None are known"):
        noise()(torch.zeros(1, 4, HIDDEN))


@pytest.fixture
def aria(fp32_folder: object) -> AriaForConditionalGeneration:
    return load_model(str(fp32_folder), experts="fp32", dtype=torch.float32).model


@pytest.fixture
def seen(aria: AriaForConditionalGeneration) -> Iterator[list[torch.Tensor]]:
    """What the first layer of the decoder is given at every forward."""
    inputs: list[torch.Tensor] = []
    layer = aria.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    yield inputs
    handle.remove()


def row_with_a_picture(aria: AriaForConditionalGeneration) -> dict[str, Any]:
    ids = torch.full((1, 148), 20)
    ids[0, 5:133] = IMAGE
    features = torch.randn(1, 128, aria.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "mm_encoder_outputs": as_encoder_outputs(features)}


@pytest.mark.parametrize("on_host", [False, True])
def test_in_aria_it_is_on_text_alone(
    aria: AriaForConditionalGeneration, seen: list[torch.Tensor], on_host: bool
) -> None:
    if on_host:
        hold_embedding_on_host(aria)
    names = set(aria.state_dict())
    add_noise(aria, 5.0)
    assert set(aria.state_dict()) == names
    assert isinstance(row_randomness(aria), RowRandomness)
    assign_rows(aria, [4], padded(148))
    for training in (False, True):
        with torch.no_grad():
            aria.train(training)(**row_with_a_picture(aria), use_cache=False)
    plain, noisy = (each[0] for each in seen)
    text = torch.ones(148, dtype=torch.bool)
    text[5:133] = False
    assert torch.equal(noisy[~text], plain[~text])
    difference = (noisy - plain)[text]
    bound = 5 / math.sqrt(148 * plain.shape[-1])
    assert 0.95 * bound < difference.abs().max() <= bound + 1e-6


def test_dropout_and_noise_know_the_same_rows(aria: AriaForConditionalGeneration) -> None:
    model = add_lora(aria, LoraPlan(dropout=0.1), base_name="tiny", seed=0)
    add_noise(model, 5.0)
    drawing = [module for module in model.modules() if isinstance(module, RowNoise | RowDropout)]
    assert len(drawing) == 1 + 8
    assert len({id(module.rows) for module in drawing}) == 1


def test_gradients_are_the_same_with_and_without_checkpointing(aria: AriaForConditionalGeneration) -> None:
    model = add_lora(aria, LoraPlan(dropout=0.1), base_name="tiny", seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    add_noise(model, 5.0)
    model.train()
    ids = torch.randint(10, 700, (2, 30), generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            aria.gradient_checkpointing_enable({"use_reentrant": False})
            aria.enable_input_require_grads()
        model.zero_grad()
        assign_rows(model, [0, 1], padded(20, 30))
        model(input_ids=ids, attention_mask=padded(20, 30), labels=ids, use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    without, with_it = gradients
    assert len(without) == 20
    for name, gradient in without.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, with_it[name]), name
