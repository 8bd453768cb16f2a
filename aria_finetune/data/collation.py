"""Rows to tensors: ids, labels, and the pixels of every tile as bytes.

Runs in the loader's workers. Knows plans, media and tiles; knows nothing of the model: pixels are normalised
where the model is. Decodes nothing itself: that happens in a process that can be killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from aria_finetune.data.chat import IGNORED, ChatTokenizer, Encoding, LossOn
from aria_finetune.data.decoding import Decoder
from aria_finetune.data.rows import LARGE, SMALL, RowPlan, Sight
from aria_finetune.data.tiles import Tile
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.images import ImageLimits
from aria_finetune.media.videos import VideoLimits

Batch = dict[str, Any]
BLANK = 127

OnBadMedia = Literal["fail", "skip"]
_CHANGED = "media_changed"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out of a batch, and the first of its media that could not be used.

    `where` is the row's place, `file:ordinal`; `media` a path; `reason` a reason code of docs/data.md, `detail` a
    short sentence for people.
    """

    row: int
    id: str
    where: str
    media: str
    reason: str
    detail: str

    def refusal(self) -> UserError:
        """The same as an error that ends the run."""
        if self.reason == _CHANGED:
            message = f"{self.media} is {self.detail}"
            remedy = "restore the file, or convert the data again, or start again where it was not converted"
        else:
            message = f"{self.media}: {self.reason}: {self.detail}"
            remedy = "restore the file, or convert the data again with --verify decode to find every such row"
        return UserError(
            message, where=self.where, fix=f"{remedy}; data.on_bad_media: skip trains without the rows that fail"
        )


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
        on_bad_media: what becomes of a row whose media can't be read, or are no longer what was planned: `fail`
            raises, `skip` leaves the row out of the batch. No other row takes its place.
        media_timeout: seconds that decoding one image or one video may take.
    """

    def __init__(  # noqa: PLR0913 (settings of a recipe, each by its name)
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
        on_bad_media: OnBadMedia = "fail",
        media_timeout: float = 30.0,
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
        self.on_bad_media = on_bad_media
        self.decoder = Decoder(media_timeout)

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """Make a batch.

        Returns:
            `input_ids`, `attention_mask`, `labels`: (batch, longest row), int64; `rows`: (batch,) row indices;
            for each tile size present `pixels_490` / `pixels_980`: (tiles, 3, size, size) uint8 and
            `extents_490` / `extents_980`: (tiles, 2) height and width of the picture in it; `tile_order`:
            (all tiles,), for the tiles in the order of the text their index into 490 and then 980. Where rows were
            left out, `bad_media`: a list of `BadRow`; where no row is left, that alone.

        Raises:
            UserError: with `on_bad_media` of `fail`, a picture can't be read, or it is no longer what it was when
                the row was planned; or decoding can't be started.
        """
        rows: list[int] = []
        tiles: list[Tile] = []
        bad: list[BadRow] = []
        for row in (feature["row"] for feature in features):
            seen = self._tiles(row)
            if not isinstance(seen, BadRow):
                rows.append(row)
                tiles += seen
            elif self.on_bad_media == "skip":
                bad.append(seen)
            else:
                raise seen.refusal()
        batch: Batch = {"bad_media": bad} if bad else {}
        if rows:
            batch |= self._texts([self._encode(self.plans[row]) for row in rows])
            batch["rows"] = torch.tensor(rows)
            batch |= _stack_tiles(tiles)
        return batch

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

    def _tiles(self, row: int) -> list[Tile] | BadRow:
        """The tiles of a whole row in the order of the text; or, if any can't be made, why."""
        plan = self.plans[row]
        where = f"{plan.record.source.file}:{plan.record.source.ordinal}"
        if plan.lost is not None:
            return BadRow(row, plan.record.id, where, plan.lost.media, plan.lost.reason, plan.lost.detail)
        tiles: dict[_Key, list[Tile]] = {}
        for sights in _by_medium(plan.sights):
            media = plan.record.media[sights[0].media]
            try:
                tiles |= self._decoded(media, sights)
            except MediaError as error:
                return BadRow(row, plan.record.id, where, media.path or "", error.reason, error.detail)
        shown = [tile for sight in plan.sights for tile in tiles[_key(sight)]]
        return [_blanked(tile) for tile in shown] if self.blank_images else shown

    def _decoded(self, media: Media, sights: Sequence[Sight]) -> dict[_Key, list[Tile]]:
        if sights[0].page is not None:
            return self._pages(media, sights)
        return self._image(media, sights) if sights[0].time is None else self._frames(media, sights)

    def _image(self, media: Media, sights: Sequence[Sight]) -> dict[_Key, list[Tile]]:
        """Tiles of one still image, however often the row shows it."""
        sight, path = sights[0], Path(media.path or "")
        image = self.decoder.image(path, sight.tile, self.image_limits, split=self.split_images, sha256=media.sha256)
        if image.size != (media.width, media.height) or len(image.tiles) != sight.tiles:
            raise MediaError(_CHANGED, "no longer the picture that the row was planned with")
        return {_key(sight): image.tiles}

    def _pages(self, media: Media, sights: Sequence[Sight]) -> dict[_Key, list[Tile]]:
        """Tiles of all pages of one document that the row shows."""
        pages = sorted({sight.page for sight in sights if sight.page is not None})
        drawn = self.decoder.pages(Path(media.path or ""), pages, sights[0].tile, sha256=media.sha256)
        return {(sights[0].media, None, page): [tile] for page, tile in zip(pages, drawn, strict=True)}

    def _frames(self, media: Media, sights: Sequence[Sight]) -> dict[_Key, list[Tile]]:
        """Tiles of all frames of one video, which is decoded once."""
        times = sorted({sight.time for sight in sights if sight.time is not None})
        path = Path(media.path or "")
        frames = self.decoder.frames(path, times, sights[0].tile, self.video_limits, sha256=media.sha256)
        return {(sights[0].media, time, None): [frame] for time, frame in zip(times, frames, strict=True)}


_Key = tuple[int, float | None, int | None]
"""What tells the pictures of a row apart: number of the medium, time and page."""


def _key(sight: Sight) -> _Key:
    return sight.media, sight.time, sight.page


def _by_medium(sights: Sequence[Sight]) -> list[list[Sight]]:
    """Sights that are decoded together: those of one image, all frames of one video, all pages of one document."""
    together: dict[int, list[Sight]] = {}
    for sight in sights:
        together.setdefault(sight.media, []).append(sight)
    return list(together.values())


def _blanked(tile: Tile) -> Tile:
    pixels = np.zeros_like(tile.pixels)
    pixels[:, : tile.height, : tile.width] = BLANK
    return Tile(pixels, tile.height, tile.width)


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
