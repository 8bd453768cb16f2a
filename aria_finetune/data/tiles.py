"""What Aria sees of an image: one fitted tile, or an overview and crops.

Long edge to 490 or 980, short edge no less than 336, bicubic, padded right and bottom. With splitting, the
image is stretched to the grid of tiles whose aspect ratio is nearest and cut up, the whole image going first
(the published image processor of rhymes-ai/Aria). Pixels stay 8 bit; the model's side normalises them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE_SIZES = (490, 980)
SHORTEST_EDGE = 336
PATCH = 14
GRIDS = (
    *((1, rows) for rows in range(2, 9)),
    *((2, rows) for rows in (4, 3, 2, 1)),
    *((columns, rows) for columns in (3, 4) for rows in (1, 2)),
    *((columns, 1) for columns in range(5, 9)),
)
"""Grids (columns, rows) an image can be split into. There is no 1x1: a split image is at least two crops."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One square input of the vision tower.

    `pixels` is (3, size, size) uint8, RGB, zero outside the image; `height` and `width` are the image's part.
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int


def fitted_size(width: int, height: int, tile: int) -> tuple[int, int]:
    """Width and height in pixels of an image fitted into a tile of side `tile`."""
    scale = tile / max(width, height)
    if width >= height:
        return tile, max(int(height * scale), SHORTEST_EDGE)
    return max(int(width * scale), SHORTEST_EDGE), tile


def choose_grid(width: int, height: int, tile: int) -> tuple[int, int]:
    """Columns and rows of the grid with the nearest aspect ratio.

    Of grids equally near, a larger one is taken only where the image has more than half of its pixels.
    """
    best, best_difference = GRIDS[0], float("inf")
    for columns, rows in GRIDS:
        difference = abs(width / height - columns / rows)
        larger = difference == best_difference and width * height > 0.5 * tile * tile * columns * rows
        if difference < best_difference or larger:
            best, best_difference = (columns, rows), difference
    return best


def tile_count(width: int, height: int, tile: int, *, split: bool) -> int:
    """How many tiles an image of that size becomes: 1, or with `split` the crops and the overview."""
    if not split:
        return 1
    columns, rows = choose_grid(width, height, tile)
    return columns * rows + 1


def fit_tile(image: Image.Image, tile: int) -> Tile:
    """Resize an RGB image into a tile, keeping its aspect ratio down to the shortest edge."""
    width, height = fitted_size(*image.size, tile)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.zeros((3, tile, tile), dtype=np.uint8)
    pixels[:, :height, :width] = np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1)
    return Tile(pixels, height, width)


def make_tiles(image: Image.Image, tile: int, *, split: bool) -> list[Tile]:
    """Tiles of one upright RGB image; as many as `tile_count` says."""
    if not split:
        return [fit_tile(image, tile)]
    columns, rows = choose_grid(*image.size, tile)
    stretched = image.resize((columns * tile, rows * tile), Image.Resampling.BICUBIC)
    corners = [(column * tile, row * tile) for row in range(rows) for column in range(columns)]
    crops = [stretched.crop((left, top, left + tile, top + tile)) for left, top in corners]
    return [fit_tile(picture, tile) for picture in (image, *crops)]
