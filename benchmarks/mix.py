"""Rows as people have them, by their lengths: images with a short question, text, videos. Random ids, no pixels.

The mix: 60 in 100 rows show one image beside 20 to 60 tokens of text, half of the images with 256 tokens (980 px) and half with 128
(490 px); 25 are text, lognormal with a median of 300 tokens and sigma 0.8; 15 are videos of 16 frames, 128 tokens each, with a
timestamp of 6 tokens before every frame and 20 to 60 tokens of text. Knows nothing of models.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

IMAGE_ROWS, TEXT_ROWS = 0.60, 0.25
LARGE, SMALL = 256, 128
FRAMES, STAMP = 16, 6
MEDIAN, SIGMA = 300, 0.8
SHORTEST, LONGEST = 16, 4096


@dataclass(frozen=True)
class Row:
    """The tokens of a row, `image_tokens` of them first, those of pictures."""

    tokens: int
    image_tokens: int


def mixed_rows(count: int, seed: int, scale: float = 1.0) -> list[Row]:
    """So many rows in a random order, each kind in its share; `scale` shortens all lengths alike."""
    source = random.Random(f"{seed}:mix")
    images, texts = round(IMAGE_ROWS * count), round(TEXT_ROWS * count)
    rows = [_image(source, large=number % 2 == 0) for number in range(images)]
    rows += [_text(source) for _ in range(texts)]
    rows += [_video(source) for _ in range(count - images - texts)]
    source.shuffle(rows)
    return [Row(max(round(row.tokens * scale), 2), round(row.image_tokens * scale)) for row in rows]


def _image(source: random.Random, *, large: bool) -> Row:
    seen = LARGE if large else SMALL
    return Row(seen + source.randint(20, 60), seen)


def _text(source: random.Random) -> Row:
    tokens = round(source.lognormvariate(math.log(MEDIAN), SIGMA))
    return Row(min(max(tokens, SHORTEST), LONGEST), 0)


def _video(source: random.Random) -> Row:
    return Row(FRAMES * (SMALL + STAMP) + source.randint(20, 60), FRAMES * SMALL)
