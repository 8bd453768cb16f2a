"""Rows to tensors: ids, labels, and the pixels of every tile as bytes.

Runs in the loader's workers. Knows plans, media and tiles; knows nothing of the model: pixels are normalised
where the model is. Decodes nothing itself: that happens in a process that can be killed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from aria_finetune.data.chat import IGNORED, ChatTokenizer, Encoding, LossOn
from aria_finetune.data.decoding import Decoder
from aria_finetune.data.pictures import CHANGED, Pictures, Showing, Shown, by_medium, shown, stack_tiles
from aria_finetune.data.rows import RowPlan, Sight
from aria_finetune.data.tiles import Tile
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import MediaError, UserError

Batch = dict[str, Any]
BLANK = 127

OnBadMedia = Literal["fail", "skip"]
T = TypeVar("T")
Look = Callable[[int, Media, Sequence[Sight]], dict[Shown, list[T]]]
"""Gives for each sight of one medium of a row (by its number) something for each of its tiles; may raise MediaError."""


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

    @classmethod
    def of(cls, row: int, plan: RowPlan, media: str, error: MediaError) -> BadRow:
        """Row number `row`, left out because of what was raised for one of its media."""
        where = f"{plan.record.source.file}:{plan.record.source.ordinal}"
        return cls(row, plan.record.id, where, media, error.reason, error.detail)

    def refusal(self) -> UserError:
        """The same as an error that ends the run."""
        if self.reason == CHANGED:
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
        showing: how pictures become tiles; splitting is as in the viewing that the plans were made with.
        generation: end rows with the header of an assistant turn and pad on the left.
        blank_images: show a grey picture instead of every image and frame, to see whether the model looks at all.
        on_bad_media: what becomes of a row whose media can't be read, or are no longer what was planned: `fail`
            raises, `skip` leaves the row out of the batch. No other row takes its place.
        media_timeout: seconds that decoding one image or one video may take.
        packed: lay the rows of a batch one behind the other in a single row, instead of padding them to the longest.
        features: gives stored features in the place of tiles: by row, medium and its sights, those of each tile,
            (tokens, hidden). It raises what decoding would.
    """

    def __init__(  # noqa: PLR0913 (settings of a recipe, each by its name)
        self,
        plans: Sequence[RowPlan],
        chat: ChatTokenizer,
        pad_id: int,
        *,
        loss_on: LossOn = "assistant",
        showing: Showing | None = None,
        generation: bool = False,
        blank_images: bool = False,
        on_bad_media: OnBadMedia = "fail",
        media_timeout: float = 30.0,
        packed: bool = False,
        features: Look[torch.Tensor] | None = None,
    ) -> None:
        self.plans = plans
        self.chat = chat
        self.pad_id = pad_id
        self.loss_on = loss_on
        self.showing = showing or Showing()
        self.generation = generation
        self.blank_images = blank_images
        self.on_bad_media = on_bad_media
        self.decoder = Decoder(media_timeout)
        self.packed = packed
        self.features = features

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """Make a batch.

        Returns:
            `rows`: (batch,) row indices; `input_ids`, `attention_mask`, `labels`: (batch, longest row), int64; or packed
            `input_ids`, `position_ids`, `labels`: (1, tokens of all rows), int64, positions beginning anew with every row,
            and `lengths`, the tokens of each; what `stack_tiles` makes of the tiles in the order of the text; or, where features are stored, `features`:
            (image tokens, hidden) and `tile_order`: (tiles,), ascending. Where rows were left out, `bad_media`: a
            list of `BadRow`; where no row is left, that alone.

        Raises:
            UserError: with `on_bad_media` of `fail`, a picture can't be read, or it is no longer what it was when
                the row was planned; or decoding can't be started.
        """
        asked = [feature["row"] for feature in features]
        if self.features is not None:
            rows, bad, stored = self._sound(asked, self.features)
            pictures = _stack_features(stored)
        else:
            rows, bad, tiles = self._sound(asked, self._tiles)
            pictures = stack_tiles([_blanked(tile) for tile in tiles] if self.blank_images else tiles)
        batch: Batch = {"bad_media": bad} if bad else {}
        if rows:
            batch["rows"] = torch.tensor(rows)  # first, as its length is what accelerate takes for that of the batch
            encodings = [self._encode(self.plans[row]) for row in rows]
            batch |= _in_one_row(encodings) if self.packed else self._texts(encodings)
            batch |= pictures
        return batch

    def first_tiles(self, row: int, count: int) -> list[Tile]:
        """The first tile of each of the first `count` pictures of a row: its overview where it is split.

        Raises:
            UserError: a picture can't be read any more.
        """
        plan = self.plans[row]
        sights = plan.sights[:count]
        seen = self._shown(row, self._tiles, sights)
        if isinstance(seen, BadRow):
            raise seen.refusal()
        places = accumulate((sight.tiles for sight in sights), initial=0)
        return [seen[place] for place, _ in zip(places, sights, strict=False)]

    def _sound(self, asked: Sequence[int], look: Look[T]) -> tuple[list[int], list[BadRow], list[T]]:
        """The rows whose pictures are all there, those that have to be left out, and all pictures of the former."""
        rows: list[int] = []
        bad: list[BadRow] = []
        pictures: list[T] = []
        for row in asked:
            seen = self._shown(row, look)
            if not isinstance(seen, BadRow):
                rows.append(row)
                pictures += seen
            elif self.on_bad_media == "skip":
                bad.append(seen)
            else:
                raise seen.refusal()
        return rows, bad, pictures

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

    def _shown(self, row: int, look: Look[T], some: Sequence[Sight] | None = None) -> list[T] | BadRow:
        """What `look` gives for the pictures of a row, or `some` of them, in the order of the text; or, if any fails, why."""
        plan = self.plans[row]
        sights = plan.sights if some is None else some
        if plan.lost is not None:
            return BadRow.of(row, plan, plan.lost.media, MediaError(plan.lost.reason, plan.lost.detail))
        seen: dict[Shown, list[T]] = {}
        for of_medium in by_medium(sights):
            media = plan.record.media[of_medium[0].media]
            try:
                seen |= look(row, media, of_medium)
            except MediaError as error:
                return BadRow.of(row, plan, media.name, error)
        return [one for sight in sights for one in seen[shown(sight)]]

    def _tiles(self, _row: int, media: Media, sights: Sequence[Sight]) -> dict[Shown, list[Tile]]:
        return Pictures(self.showing, self.decoder).of(media, sights)


def _in_one_row(encodings: Sequence[Encoding]) -> Batch:
    """Rows one behind the other; the first token of each follows on none, so that it is never in the loss."""
    lengths = [len(encoding.ids) for encoding in encodings]
    labels = [label for encoding in encodings for label in (IGNORED, *encoding.labels[1:])]
    return {
        "input_ids": torch.tensor([[token for encoding in encodings for token in encoding.ids]]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "lengths": lengths,
    }


def _blanked(tile: Tile) -> Tile:
    pixels = np.zeros_like(tile.pixels)
    pixels[:, : tile.height, : tile.width] = BLANK
    return Tile(pixels, tile.height, tile.width)


def _stack_features(features: Sequence[torch.Tensor]) -> Batch:
    if not features:
        return {}
    return {"features": torch.cat(list(features)), "tile_order": torch.arange(len(features))}
