"""Image features from the vision tower: no padding, a few tiles at a time, and a gradient only where it or the projector is trained.

Left alone, the frozen tower runs with gradients, because input-gradient hooks land on its embeddings, and is
recomputed and backpropagated for nothing: 3 times the work for a 980-px image. Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers import AriaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from aria_finetune.model.expert_weights import arithmetic
from aria_finetune.model.tower import encode

TILES_AT_A_TIME = {490: 4, 980: 1}
"""By tile side in pixels, on a GPU, where the tower is busy with that many; of pictures of one shape.

On a CPU it is one of any size: its features would depend in their last bits on the tiles beside it, and with them on the batch.
"""
_MEAN = _DEVIATION = 0.5


def image_features(model: AriaForConditionalGeneration, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Projected features of all tiles of a batch, in the order of the text.

    Args:
        model: Aria, without an adapter around it.
        batch: what the collator made: `pixels_N`, `extents_N` for tile sides N of 490 and 980, and `tile_order`; or
            `features` that were computed before.

    Returns:
        (1, image tokens, hidden) in the dtype of the vision tower, or None for a batch without pictures. In the graph where
        gradients are asked for and tower or projector have adapters that are trained.
    """
    if "tile_order" not in batch:
        return None
    if "features" in batch:
        return batch["features"][None]
    features: list[torch.Tensor] = []
    for size, count in TILES_AT_A_TIME.items():
        if f"pixels_{size}" in batch:
            pixels = batch[f"pixels_{size}"]
            together = 1 if pixels.device.type == "cpu" else count
            features += _encode(model, pixels, batch[f"extents_{size}"], together)
    return torch.cat([features[index] for index in batch["tile_order"].tolist()])[None]


def as_encoder_outputs(features: torch.Tensor) -> dict[str, BaseModelOutputWithPooling]:
    """The form in which Aria's forward takes features instead of pixels (`mm_encoder_outputs`)."""
    return {"image": BaseModelOutputWithPooling(pooler_output=features)}


def normalise(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 pixels (..., 3, H, W) to the tower's range -1..1: value / 255, mean and deviation 0.5; as `dtype`."""
    return (pixels.float().mul_(1 / 255).sub_(_MEAN).div_(_DEVIATION)).to(dtype)


def _encode(
    model: AriaForConditionalGeneration, pixels_N3SS: torch.Tensor, extents_N2: torch.Tensor, count: int
) -> list[torch.Tensor]:
    """Of each tile its (image tokens, hidden); `count` tiles at a time, if they show as many rows and columns of patches."""
    aria, side, device = model.model, pixels_N3SS.shape[-1], pixels_N3SS.device
    stored, patch = aria.vision_tower.dtype, aria.vision_tower.patch_size
    computed = arithmetic(stored, device)
    queries = aria.multi_modal_projector.patch_to_query_dict[(side // patch) ** 2]
    # A patch that is all padding is left out: no other looks at it, and no query.
    shapes = [tuple(-(-length // patch) * patch for length in extent) for extent in extents_N2.tolist()]
    features: dict[int, torch.Tensor] = {}
    for numbers in alike(shapes, count):
        height, width = shapes[numbers[0]]
        pixels_n3HW = normalise(pixels_N3SS[numbers, :, :height, :width], computed)
        # Outside autocast all is computed in the dtype of the pixels; inside, layer norms would leave it in fp32.
        with torch.autocast(device.type, enabled=False):
            features |= zip(numbers, encode(aria, pixels_n3HW, queries).to(stored).unbind(), strict=True)
    return [features[number] for number in range(len(shapes))]


def alike(shapes: Sequence[tuple[int, ...]], count: int) -> Iterator[list[int]]:
    """All numbers of tiles, those of one shape together but `count` at most."""
    for shape in dict.fromkeys(shapes):
        numbers = [number for number, other in enumerate(shapes) if other == shape]
        for start in range(0, len(numbers), count):
            yield numbers[start : start + count]
