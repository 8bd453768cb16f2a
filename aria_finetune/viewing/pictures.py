"""The pictures of a row with the tiles they became: which file, which frame or page, in what words. Knows no markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from aria_finetune.data.rows import RowPlan, Sight
from aria_finetune.data.tiles import Tile, choose_grid
from aria_finetune.data_formats.record import Media

Noun = Literal["image", "frame", "page"]


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """One picture of a row.

    `number` counts the images and the frames of a row from 1, or is that of a page. `side` is that of its tiles in
    pixels, `time` the second of a frame in its video. A split image has its overview in `tiles` first and then its
    crops, `columns` in a row; for others `columns` is 0.
    """

    noun: Noun
    number: int
    name: str
    side: int
    tiles: tuple[Tile, ...]
    columns: int = 0
    time: float | None = None

    def label(self, tokens: int) -> str:
        """What stands for its run of `tokens` image tokens."""
        crops = f", overview and {len(self.tiles) - 1} crops" if self.columns else ""
        when = f" at {self.time:.3f} s" if self.time is not None else ""
        return f"[{self.noun} {self.number}: {tokens} tokens, {self.side} px{crops}, {self.name}{when}]"


def shown_pictures(plan: RowPlan, tiles: Sequence[Tile]) -> Iterator[ShownPicture]:
    """The pictures of a row in the order of the text; `tiles` are all tiles of the row in the same order."""
    numbers: Counter[Noun] = Counter()
    first = 0
    for sight in plan.sights:
        media, noun = plan.record.media[sight.media], _noun(sight)
        numbers[noun] += 1
        yield ShownPicture(
            noun,
            sight.page or numbers[noun],
            media_name(media),
            sight.tile,
            tuple(tiles[first : first + sight.tiles]),
            choose_grid(media.width, media.height, sight.tile)[0] if sight.tiles > 1 else 0,
            sight.time,
        )
        first += sight.tiles


def media_name(media: Media) -> str:
    """The name of a medium's file as the source has it, without its folders."""
    if media.origin[:5].lower() == "data:":
        return f"inline {media.mime}"
    return PurePath(media.origin or media.path or "").name or media.mime


def _noun(sight: Sight) -> Noun:
    if sight.page is not None:
        return "page"
    return "image" if sight.time is None else "frame"
