"""Small pictures of tiles, as data URIs: the part of a tile that is picture, without its padding."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from aria_finetune.data.tiles import Tile

LONGEST_SIDE = 384
"""In pixels: twice what a page shows, for screens that have two pixels for one."""

QUALITY = 82


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A JPEG of `width` x `height` pixels."""

    width: int
    height: int
    jpeg: bytes

    @property
    def uri(self) -> str:
        """For the `src` of an image."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode('ascii')}"


def thumbnail(tile: Tile, longest: int = LONGEST_SIDE) -> Thumbnail:
    """Draw a tile small, keeping its proportions; one of no more than `longest` pixels a side keeps its size."""
    pixels = np.ascontiguousarray(tile.pixels[:, : tile.height, : tile.width].transpose(1, 2, 0))
    picture = Image.fromarray(pixels)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return Thumbnail(*picture.size, stream.getvalue())
