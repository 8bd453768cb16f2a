"""The forward of tower and projector against transformers' own, with Aria's dimensions and one layer of 27."""

from __future__ import annotations

import pytest
import torch
from transformers import AriaConfig, AriaTextConfig
from transformers.models.aria.modeling_aria import AriaModel
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from aria_finetune.model.tower import encode

QUERIES = {490: 128, 980: 256}
BF16 = torch.bfloat16


def random_aria(*, layers: int, full: bool = True) -> AriaModel:
    """fp32, with weights and biases that bf16 holds exactly; the decoder is next to nothing."""
    text = AriaTextConfig(
        vocab_size=32, hidden_size=256, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, moe_num_experts=2, moe_topk=1, pad_token_id=0,
    )  # fmt: skip
    vision = Idefics3VisionConfig(
        hidden_size=1152 if full else 64,
        intermediate_size=4304 if full else 96,
        num_hidden_layers=layers,
        num_attention_heads=16 if full else 4,
        image_size=980,
        patch_size=14,
    )
    config = AriaConfig(text_config=text, vision_config=vision, projector_patch_to_query_dict={1225: 128, 4900: 256})
    model = AriaModel(config).requires_grad_(requires_grad=False).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in [*model.vision_tower.named_parameters(), *model.multi_modal_projector.named_parameters()]:
        # Wide enough that attention looks at some patches more than at others, and queries at different ones.
        deviation = 0.1 if parameter.ndim < 2 else 1.5 / parameter[0].numel() ** 0.5
        values = torch.randn(parameter.shape, generator=generator) * deviation
        parameter.copy_((values + (1 if "norm" in name and name.endswith("weight") else 0)).to(BF16))
    return model


@pytest.fixture(scope="module")
def aria() -> AriaModel:
    return random_aria(layers=1)


def random_tile(side: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (1, 3, side, side), which bf16 holds exactly, and the mask (1, side, side); zeros behind height and width."""
    pixels = torch.zeros(1, 3, side, side)
    shown = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(side + height + width))
    pixels[:, :, :height, :width] = shown.to(BF16)
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, :height, :width] = True
    return pixels, mask


def shown(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The patches that are not all padding."""
    return pixels[:, :, : -(-height // 14) * 14, : -(-width // 14) * 14]


def theirs(model: AriaModel, pixels: torch.Tensor, mask: torch.Tensor, layer: int = -1) -> torch.Tensor:
    with torch.no_grad():
        features: torch.Tensor = model.get_image_features(pixels, mask, vision_feature_layer=layer).pooler_output
    return features


def error(given: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("side", "height", "width"),
    [(490, 490, 490), (490, 336, 490), (490, 490, 345), (980, 980, 980), (980, 551, 980)],
)
def test_features_are_those_of_transformers(aria: AriaModel, side: int, height: int, width: int) -> None:
    pixels, mask = random_tile(side, height, width)
    exact = theirs(aria, pixels, mask)
    assert exact.shape == (1, QUERIES[side], 256)
    seen = shown(pixels, height, width)
    assert error(encode(aria, seen, QUERIES[side]), exact) <= 1e-5

    aria.to(BF16)
    try:
        # fp32 from bf16 weights, which is what a CPU computes, is exact; bf16, as on a GPU, is as good as transformers'.
        upcast, rounded = encode(aria, seen, QUERIES[side]), encode(aria, seen.to(BF16), QUERIES[side])
        other = theirs(aria, pixels.to(BF16), mask)
    finally:
        aria.float()
    assert (upcast.dtype, rounded.dtype) == (torch.float32, BF16)
    assert error(upcast, exact) <= 1e-5
    assert error(other, exact) > 1e-3, "the test does not see bf16 rounding"
    assert error(rounded, exact) <= 2 * error(other, exact)
    assert error(rounded, other) <= 3e-2


def test_several_tiles_are_as_one_by_one(aria: AriaModel) -> None:
    pixels = torch.cat([random_tile(490, 490, width)[0] for width in (490, 420, 350)])
    together = encode(aria, pixels[:, :, :, :420], 128)
    alone = torch.cat([encode(aria, tile[None, :, :, :420], 128) for tile in pixels])
    assert together.shape == (3, 128, 256)
    assert error(together, alone) <= 1e-5


@pytest.mark.parametrize("layer", [-1, -2, 1, 3])
def test_the_layer_that_the_settings_name(layer: int) -> None:
    model = random_aria(layers=3, full=False)
    model.config.vision_feature_layer = layer
    pixels, mask = random_tile(490, 490, 400)
    expected = theirs(model, pixels, mask, layer)
    assert error(encode(model, shown(pixels, 490, 400), 128), expected) <= 1e-5
    others = {-1: -2, -2: -1, 1: -1, 3: 1}
    assert error(theirs(model, pixels, mask, others[layer]), expected) > 1e-3, "all layers give the same"


def test_weights_are_left_as_they_were() -> None:
    model = random_aria(layers=2, full=False).to(BF16)
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    encode(model, random_tile(490, 490, 490)[0], 128)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, values) in before.items():
        assert after[name] is parameter
        assert parameter.dtype == BF16
        assert torch.equal(parameter, values)


def test_no_gradient_is_kept_for_weights_that_want_one() -> None:
    model = random_aria(layers=2, full=False).requires_grad_(requires_grad=True)
    assert not encode(model, random_tile(490, 490, 490)[0], 128).requires_grad
