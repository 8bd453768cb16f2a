"""Thumbnails are the picture of a tile without its padding, small, as JPEG."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from aria_finetune.data.tiles import fit_tile
from aria_finetune.viewing.thumbnails import LONGEST_SIDE, thumbnail


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    picture.load()
    return picture


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [
        ((980, 735), 490, (384, 288)),  # 490 x 367 in the tile; 367 * 384 / 490 = 287.6
        ((735, 980), 980, (288, 384)),
        ((100, 1000), 490, (263, 384)),  # no side of a picture in a tile is below 336
        ((50, 50), 490, (384, 384)),
    ],
)
def test_size_format_and_padding(size: tuple[int, int], tile: int, expected: tuple[int, int]) -> None:
    made = thumbnail(fit_tile(Image.new("RGB", size, "white"), tile))
    picture = decoded(made.uri)
    assert picture.format == "JPEG"
    assert (made.width, made.height) == picture.size == expected
    assert max(picture.size) == LONGEST_SIDE
    assert np.asarray(picture).min() > 250, "the black padding shows"


def test_colours_are_where_they_were() -> None:
    halves = Image.new("RGB", (400, 200), "red")
    halves.paste((0, 0, 255), (200, 0, 400, 200))
    picture = decoded(thumbnail(fit_tile(halves, 490)).uri)
    left, right = (np.asarray(picture.getpixel((x, picture.height // 2)), int) for x in (40, picture.width - 40))
    assert np.abs(left - (255, 0, 0)).max() < 8
    assert np.abs(right - (0, 0, 255)).max() < 8
