"""Image features from the frozen vision tower: no gradient, a few tiles at a time.

Left alone, the frozen tower runs with gradients, because input-gradient hooks land on its embeddings, and is
recomputed and backpropagated for nothing: 3 times the work for a 980-px image. Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import AriaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

TILES_AT_A_TIME = {490: 4, 980: 1}
"""By tile side in pixels, on a GPU. The projector's attention over several 980-px tiles would take gigabytes.

On a CPU it is one of any size: in bf16 its features would depend on the tiles beside it, and with them on the batch.
"""
_MEAN = _DEVIATION = 0.5


def image_features(model: AriaForConditionalGeneration, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Projected features of all tiles of a batch, in the order of the text.

    Args:
        model: Aria, without an adapter around it.
        batch: what the collator made: `pixels_N`, `extents_N` for tile sides N of 490 and 980, and `tile_order`; or
            `features` that were computed before.

    Returns:
        (1, image tokens, hidden) in the dtype of the vision tower, or None for a batch without pictures.
    """
    if "tile_order" not in batch:
        return None
    if "features" in batch:
        return batch["features"][None]
    features: list[torch.Tensor] = []
    with torch.no_grad():
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
    size = pixels_N3SS.shape[-1]
    dtype = model.model.vision_tower.dtype
    line = torch.arange(size, device=pixels_N3SS.device)
    features: list[torch.Tensor] = []
    for start in range(0, len(pixels_N3SS), count):
        extents_n2 = extents_N2[start : start + count].to(line.device)
        height_n1, width_n1 = extents_n2[:, :1], extents_n2[:, 1:]
        mask_nSS = (line < height_n1)[:, :, None] & (line < width_n1)[:, None, :]
        pixels_n3SS = normalise(pixels_N3SS[start : start + count], dtype)
        # Outside autocast the tower computes in its own dtype; inside, layer norms would leave it in fp32.
        with torch.autocast(pixels_n3SS.device.type, enabled=False):
            # The output also holds every layer's hidden states: no name, or they stay through the next tiles.
            features += model.get_image_features(pixels_n3SS, mask_nSS).pooler_output.unbind()
    return features
