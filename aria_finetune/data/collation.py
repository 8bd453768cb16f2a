"""Rows to tensors: ids, labels, and the pixels of every tile as bytes.

Runs in the loader's workers. Knows plans, media and tiles; knows nothing of the model: pixels are normalised
where the model is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aria_finetune.data.chat import IGNORED, ChatTokenizer, Encoding, LossOn
from aria_finetune.data.rows import LARGE, SMALL, RowPlan, Sight
from aria_finetune.data.tiles import Tile, fit_tile, make_tiles
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.images import ImageLimits, open_image
from aria_finetune.media.videos import VideoLimits, read_frames

Batch = dict[str, torch.Tensor]
BLANK = (127, 127, 127)


class Collator:
    """Makes batches of planned rows.

    Args:
        plans: all rows that may be asked for; a feature is `{"row": index}`.
        chat: renders turns.
        pad_id: id that fills up short rows. It must lie inside the embedding: `<pad>` of the hub tokenizer does not.
        loss_on: which assistant turns are in the loss.
        split_images: as in the viewing that the plans were made with.
        generation: end rows with the header of an assistant turn and pad on the left.
        blank_images: show a grey picture instead of every image and frame, to see whether the model looks at all.
    """

    def __init__(
        self,
        plans: Sequence[RowPlan],
        chat: ChatTokenizer,
        pad_id: int,
        *,
        loss_on: LossOn = "assistant",
        split_images: bool = False,
        image_limits: ImageLimits | None = None,
        video_limits: VideoLimits | None = None,
        generation: bool = False,
        blank_images: bool = False,
    ) -> None:
        self.plans = plans
        self.chat = chat
        self.pad_id = pad_id
        self.loss_on = loss_on
        self.split_images = split_images
        self.image_limits = image_limits or ImageLimits()
        self.video_limits = video_limits or VideoLimits()
        self.generation = generation
        self.blank_images = blank_images

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """Make a batch.

        Returns:
            `input_ids`, `attention_mask`, `labels`: (batch, longest row), int64; `rows`: (batch,) row indices;
            for each tile size present `pixels_490` / `pixels_980`: (tiles, 3, size, size) uint8 and
            `extents_490` / `extents_980`: (tiles, 2) height and width of the picture in it; `tile_order`:
            (all tiles,), for the tiles in the order of the text their index into 490 and then 980.

        Raises:
            UserError: a picture can't be read, or it is no longer what it was when the row was planned.
        """
        plans = [self.plans[feature["row"]] for feature in features]
        batch = self._texts([self._encode(plan) for plan in plans])
        batch["rows"] = torch.tensor([feature["row"] for feature in features])
        tiles = [tile for plan in plans for tile in self._tiles(plan)]
        return batch | _stack_tiles(tiles)

    def _encode(self, plan: RowPlan) -> Encoding:
        return self.chat.encode(plan.turns, loss_on=self.loss_on, generation_prompt=self.generation)

    def _texts(self, encodings: Sequence[Encoding]) -> Batch:
        width = max(len(encoding.ids) for encoding in encodings)
        columns = ("input_ids", "attention_mask", "labels")
        batch = {name: torch.zeros(len(encodings), width, dtype=torch.long) for name in columns}
        batch["input_ids"].fill_(self.pad_id)
        batch["labels"].fill_(IGNORED)
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            place = slice(width - length, width) if self.generation else slice(0, length)
            batch["input_ids"][row, place] = torch.tensor(encoding.ids)
            batch["attention_mask"][row, place] = 1
            batch["labels"][row, place] = torch.tensor(encoding.labels)
        return batch

    def _tiles(self, plan: RowPlan) -> list[Tile]:
        frames = self._frames(plan)
        tiles: list[Tile] = []
        for sight in plan.sights:
            made = self._sight_tiles(plan, sight, frames)
            if len(made) != sight.tiles:
                raise self._changed(plan, sight)
            tiles += made
        return tiles

    def _sight_tiles(self, plan: RowPlan, sight: Sight, frames: Mapping[tuple[int, float], Image.Image]) -> list[Tile]:
        if sight.time is not None:
            return [fit_tile(self._shown(frames[sight.media, sight.time]), sight.tile)]
        media = plan.record.media[sight.media]
        try:
            image = open_image(Path(media.path or ""), self.image_limits)
        except MediaError as error:
            raise self._unreadable(plan, sight, error) from error
        if image.size != (media.width, media.height):
            raise self._changed(plan, sight)
        return make_tiles(self._shown(image), sight.tile, split=self.split_images)

    def _frames(self, plan: RowPlan) -> dict[tuple[int, float], Image.Image]:
        """Frames of all videos of a row, each video decoded once, by media index and time."""
        wanted: dict[int, list[float]] = {}
        for sight in plan.sights:
            if sight.time is not None:
                wanted.setdefault(sight.media, []).append(sight.time)
        frames: dict[tuple[int, float], Image.Image] = {}
        for index, times in wanted.items():
            path = Path(plan.record.media[index].path or "")
            distinct = sorted(set(times))
            try:
                pictures = read_frames(path, distinct, self.video_limits)
            except MediaError as error:
                raise self._unreadable(plan, Sight(index, SMALL, 1, distinct[0]), error) from error
            frames |= {(index, time): picture for time, picture in zip(distinct, pictures, strict=True)}
        return frames

    def _shown(self, image: Image.Image) -> Image.Image:
        return Image.new("RGB", image.size, BLANK) if self.blank_images else image

    @staticmethod
    def _unreadable(plan: RowPlan, sight: Sight, error: MediaError) -> UserError:
        media = plan.record.media[sight.media]
        return UserError(
            f"{media.path}: {error.reason}: {error.detail}",
            where=f"{plan.record.source.file}:{plan.record.source.ordinal}",
            fix="restore the file, or convert the data again with --verify decode to find every such row",
        )

    @staticmethod
    def _changed(plan: RowPlan, sight: Sight) -> UserError:
        media = plan.record.media[sight.media]
        return UserError(
            f"{media.path} is no longer the picture that the row was planned with",
            where=f"{plan.record.source.file}:{plan.record.source.ordinal}",
            fix="start again, so that the data is read anew",
        )


def _stack_tiles(tiles: Sequence[Tile]) -> Batch:
    if not tiles:
        return {}
    batch: Batch = {}
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
