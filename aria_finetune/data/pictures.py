"""The tiles of what a row shows of a medium: an image, frames of a video, pages of a document.

Knows planned sights and the decoder. Knows nothing of batches or of what becomes of a row whose media fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from aria_finetune.data.decoding import Decoder
from aria_finetune.data.rows import LARGE, SMALL, Sight
from aria_finetune.data.tiles import Tile
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import MediaError
from aria_finetune.media.images import ImageLimits
from aria_finetune.media.videos import VideoLimits

CHANGED = "media_changed"
"""Reason code of a file that is no longer what it was."""

Shown = tuple[int, float | None, int | None]
"""What tells the pictures of a row apart: number of the medium, time and page."""


@dataclass(frozen=True)
class Showing:
    """How pictures become tiles: whether images are split, and what is accepted."""

    split_images: bool = False
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    video_limits: VideoLimits = field(default_factory=VideoLimits)


@dataclass(frozen=True)
class Pictures:
    """Makes tiles, medium by medium, in the decoder's process."""

    showing: Showing
    decoder: Decoder

    def of(self, media: Media, sights: Sequence[Sight]) -> dict[Shown, list[Tile]]:
        """Tiles of sights of one medium, which is decoded once however often they show it.

        Raises:
            MediaError: it can't be read, or is no longer what it was when the row was planned.
            UserError: decoding can't be started.
        """
        if sights[0].page is not None:
            return self._pages(media, sights)
        return self._image(media, sights) if sights[0].time is None else self._frames(media, sights)

    def _image(self, media: Media, sights: Sequence[Sight]) -> dict[Shown, list[Tile]]:
        sight, path = sights[0], Path(media.path or "")
        image = self.decoder.image(
            path,
            sight.tile,
            self.showing.image_limits,
            split=self.showing.split_images,
            sha256=media.sha256,
            packed=media.packed,
        )
        if image.size != (media.width, media.height) or len(image.tiles) != sight.tiles:
            raise MediaError(CHANGED, "no longer the picture that the row was planned with")
        return {shown(sight): image.tiles}

    def _pages(self, media: Media, sights: Sequence[Sight]) -> dict[Shown, list[Tile]]:
        pages = sorted({sight.page for sight in sights if sight.page is not None})
        drawn = self.decoder.pages(Path(media.path or ""), pages, sights[0].tile, sha256=media.sha256)
        return {(sights[0].media, None, page): [tile] for page, tile in zip(pages, drawn, strict=True)}

    def _frames(self, media: Media, sights: Sequence[Sight]) -> dict[Shown, list[Tile]]:
        times = sorted({sight.time for sight in sights if sight.time is not None})
        path = Path(media.path or "")
        frames = self.decoder.frames(path, times, sights[0].tile, self.showing.video_limits, sha256=media.sha256)
        return {(sights[0].media, time, None): [frame] for time, frame in zip(times, frames, strict=True)}


def shown(sight: Sight) -> Shown:
    """What tells a sight apart from others of its row."""
    return sight.media, sight.time, sight.page


def by_medium(sights: Sequence[Sight]) -> list[list[Sight]]:
    """Sights that are decoded together: those of one image, all frames of one video, all pages of one document."""
    together: dict[int, list[Sight]] = {}
    for sight in sights:
        together.setdefault(sight.media, []).append(sight)
    return list(together.values())


def stack_tiles(tiles: Sequence[Tile]) -> dict[str, torch.Tensor]:
    """Tiles as tensors by size, and the order in which they came; empty where there are none.

    Returns:
        for each tile size present `pixels_490` / `pixels_980`: (tiles, 3, size, size) uint8 and `extents_490` /
        `extents_980`: (tiles, 2) height and width of the picture in it; `tile_order`: (all tiles,), for the tiles as
        they came their index into 490 and then 980.
    """
    if not tiles:
        return {}
    batch: dict[str, torch.Tensor] = {}
    order = np.zeros(len(tiles), dtype=np.int64)
    placed = 0
    for size in (SMALL, LARGE):
        chosen = [index for index, tile in enumerate(tiles) if tile.pixels.shape[-1] == size]
        if not chosen:
            continue
        order[chosen] = np.arange(placed, placed + len(chosen))
        placed += len(chosen)
        batch[f"pixels_{size}"] = torch.from_numpy(np.stack([tiles[index].pixels for index in chosen]))
        batch[f"extents_{size}"] = torch.tensor([(tiles[index].height, tiles[index].width) for index in chosen])
    batch["tile_order"] = torch.from_numpy(order)
    return batch
