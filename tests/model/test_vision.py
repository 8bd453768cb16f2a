"""Image features are those of plain transformers on the pixels of its own image processor."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AriaForConditionalGeneration
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

from aria_finetune.model.expert_weights import arithmetic
from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.vision import alike, as_encoder_outputs, image_features, normalise

# Wide, tall and square; the first is padded below, the second on the right.
SIZES = [(300, 200), (150, 500), (400, 400), (980, 500), (64, 64), (490, 336)]


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def processed(images: list[Image.Image], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (tiles, 3, side, side) and mask (tiles, side, side) of transformers' own processor."""
    made = AriaImageProcessorPil()(images, max_image_size=side, return_tensors="pt")
    return made["pixel_values"], made["pixel_mask"]


def as_bytes(pixels: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as uint8 and as height and width of each picture, which is what the collator makes."""
    extents = torch.stack([mask[:, :, 0].sum(1), mask[:, 0, :].sum(1)], dim=1)
    return ((pixels * 0.5 + 0.5) * 255).round().to(torch.uint8), extents


def batch(small: list[Image.Image], large: list[Image.Image], order: list[int]) -> dict[str, torch.Tensor]:
    made = {"tile_order": torch.tensor(order)}
    for side, images in ((490, small), (980, large)):
        if images:
            made[f"pixels_{side}"], made[f"extents_{side}"] = as_bytes(*processed(images, side))
    return made


@pytest.fixture(scope="module")
def plain(fp32_folder: Path) -> AriaForConditionalGeneration:
    return AriaForConditionalGeneration.from_pretrained(fp32_folder, dtype=torch.float32).eval()


def expected_features(model: AriaForConditionalGeneration, images: list[Image.Image], side: int) -> list[torch.Tensor]:
    pixels, mask = processed(images, side)
    with torch.no_grad():
        return list(model.get_image_features(pixels.to(model.dtype), mask).pooler_output)


def relative_error(given: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalising_is_the_processor_s(dtype: torch.dtype) -> None:
    pixels, mask = processed(pictures(*SIZES[:3]), 490)
    values = normalise(as_bytes(pixels, mask)[0], dtype)
    assert values.dtype == dtype
    # fp32 arithmetic in another order; in bf16 that can tip a rounding
    assert (values.float() - pixels).abs().max() <= (1e-6 if dtype == torch.float32 else 2**-8)


def test_normalising_leaves_the_bytes_alone() -> None:
    pixels = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    assert torch.allclose(normalise(pixels, torch.float32), torch.tensor([[-1.0, 1.0, -0.6]]), atol=1e-6)
    assert pixels.tolist() == [[0, 255, 51]]


@pytest.mark.parametrize("count", [1, 4, 6])
def test_small_tiles(plain: AriaForConditionalGeneration, count: int) -> None:
    images = pictures(*SIZES[:count])
    features = image_features(plain, batch(images, [], list(range(count))))
    assert features is not None
    assert features.shape == (1, count * 128, 64)
    expected = torch.cat(expected_features(plain, images, 490))[None]
    assert relative_error(features, expected) <= 1e-5
    assert expected.std() > 1e-3


def test_small_and_large_tiles_in_the_order_of_the_text(plain: AriaForConditionalGeneration) -> None:
    """Text: large, small, large, small. Tiles by size: small 0, 1 and then large 2, 3."""
    images = pictures(*SIZES[:4])
    small, large = [images[1], images[3]], [images[0], images[2]]
    features = image_features(plain, batch(small, large, [2, 0, 3, 1]))
    assert features is not None
    first, second = expected_features(plain, small, 490)
    big_first, big_second = expected_features(plain, large, 980)
    expected = torch.cat([big_first, first, big_second, second])[None]
    assert features.shape == expected.shape == (1, 2 * 128 + 2 * 256, 64)
    assert relative_error(features, expected) <= 1e-5


@pytest.mark.parametrize(
    ("experts", "dtype"), [("nf4", torch.bfloat16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_a_loaded_model_s_are_transformers_to_rounding(
    tiny_folder: Path, plain: AriaForConditionalGeneration, experts: Experts, dtype: torch.dtype
) -> None:
    images = pictures(*SIZES[:4])
    made = batch(images, [], list(range(len(images))))
    features = image_features(load_model(str(tiny_folder), experts=experts, dtype=dtype).model, made)
    assert features is not None
    assert features.dtype == dtype
    exact = torch.cat(expected_features(plain, images, 490))
    same_dtype = AriaForConditionalGeneration.from_pretrained(tiny_folder, dtype=dtype)
    theirs = torch.cat(expected_features(same_dtype, images, 490))
    if dtype == torch.float32:
        assert relative_error(features[0], theirs) <= 1e-5
    elif arithmetic(dtype, torch.device("cpu")) == torch.float32:
        # computed in fp32 and rounded once, to half of the last of eight bits
        assert torch.all((features[0] - exact).abs() <= exact.abs() * 2**-8 + 1e-4 * exact.abs().max())
        assert relative_error(theirs, exact) > 4 * relative_error(features[0], exact)
    else:
        assert relative_error(features[0], exact) <= 2 * relative_error(theirs, exact)


def test_a_tile_s_features_do_not_depend_on_those_beside_it(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder)).model
    images = pictures((300, 200), (400, 400), (400, 400))
    together = image_features(model, batch(images, [], [0, 1, 2]))
    assert together is not None
    for number, features in enumerate(together[0].split(128)):
        alone = image_features(model, batch(images[number : number + 1], [], [0]))
        assert alone is not None
        assert torch.equal(alone[0], features)


def test_padding_is_not_looked_at(plain: AriaForConditionalGeneration) -> None:
    made = batch(pictures((400, 300)), [], [0])
    height, width = made["extents_490"][0].tolist()
    assert (height, width) == (367, 490), "the last row of patches is not padding in part"
    features = image_features(plain, made)
    made["pixels_490"][:, :, -(-height // 14) * 14 :] ^= 255
    assert torch.equal(image_features(plain, made), features)
    made["pixels_490"][:, :, height - 1] ^= 255
    assert not torch.equal(image_features(plain, made), features)


def test_tiles_of_one_shape_go_together() -> None:
    wide, tall = (336, 490), (490, 336)
    groups = list(alike([wide, tall, wide, wide, tall, wide, wide], 4))
    assert groups == [[0, 2, 3, 5], [6], [1, 4]]
    assert list(alike([wide, tall, wide], 1)) == [[0], [2], [1]]
    assert list(alike([], 4)) == []


def test_autocast_does_not_change_them(plain: AriaForConditionalGeneration, tiny_folder: Path) -> None:
    made = batch(pictures(*SIZES[:2]), [], [0, 1])
    for model in (plain, load_model(str(tiny_folder)).model):
        alone = image_features(model, made)
        with torch.autocast("cpu", torch.bfloat16):
            inside = image_features(model, made)
        assert alone is not None
        assert inside is not None
        assert inside.dtype == alone.dtype == model.model.vision_tower.dtype
        assert torch.equal(inside, alone)


def test_a_text_batch_has_none(plain: AriaForConditionalGeneration) -> None:
    assert image_features(plain, {"input_ids": torch.zeros(1, 3, dtype=torch.long)}) is None


def hidden_states_alive() -> int:
    """How many tensors with a row for every patch there are, parameters aside."""
    return sum(type(thing) is torch.Tensor and thing.shape[-2:-1] in {(1225,), (4900,)} for thing in gc.get_objects())


def test_no_gradient_and_one_tile_at_a_time_on_a_cpu(plain: AriaForConditionalGeneration) -> None:
    made = batch(pictures(*[(400, 400)] * 6), pictures(*[(980, 980)] * 2), list(range(8)))
    seen: list[tuple[int, bool, int]] = []

    def watch(_: nn.Module, __: object, output: torch.Tensor) -> None:
        seen.append((len(output), output.requires_grad, hidden_states_alive()))

    plain.requires_grad_(requires_grad=True)
    hook = plain.model.vision_tower.encoder.layers[1].self_attn.out_proj.register_forward_hook(watch)
    before = hidden_states_alive()
    try:
        features = image_features(plain, made)
    finally:
        hook.remove()
        plain.requires_grad_(requires_grad=False)
    assert features is not None
    assert not features.requires_grad
    assert [tiles for tiles, _, _ in seen] == [1] * 8
    assert not any(gradient for _, gradient, _ in seen)
    assert seen[0][2] > before, "the test does not see hidden states"
    assert {alive for _, _, alive in seen} == {seen[0][2]}, "hidden states pile up"
    assert hidden_states_alive() == before, "hidden states are kept"
    assert features.untyped_storage().nbytes() == features.numel() * features.element_size()


def test_the_model_takes_them_instead_of_pixels(plain: AriaForConditionalGeneration) -> None:
    images = pictures((300, 200), (200, 300))
    ids = torch.tensor([[4, 6, *[9] * 128, 8, 20, 5], [4, 6, *[9] * 128, 8, 21, 5]])
    pixels, mask = processed(images, 490)
    features = image_features(plain, batch(images, [], [0, 1]))
    assert features is not None
    with torch.no_grad():
        expected = plain(input_ids=ids, pixel_values=pixels, pixel_mask=mask).logits
        logits = plain(input_ids=ids, mm_encoder_outputs=as_encoder_outputs(features)).logits
    assert relative_error(logits, expected) <= 1e-5
    with torch.no_grad():
        swapped = plain(input_ids=ids, mm_encoder_outputs=as_encoder_outputs(features.flip(1))).logits
    assert relative_error(swapped, expected) > 1e-3, "the pictures make no difference"
