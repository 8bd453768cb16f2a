"""A row as it is shown, with where it comes from and when training sees it. Knows no markup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.collation import BadRow
from aria_finetune.data.rows import RowPlan
from aria_finetune.viewing.batches import SeenRow
from aria_finetune.viewing.checks import find_faults
from aria_finetune.viewing.spans import PictureSpan, ShownTurn, read_turns


@dataclass(frozen=True, slots=True)
class Place:
    """Which row it is: the `number`th (from 1) of `total`.

    `where` is its `file:row`, `source` what the recipe names, `weight` how often the source's rows are seen in an epoch;
    None where that is not asked, in evaluation.
    """

    number: int
    total: int
    where: str
    id: str
    source: str
    weight: float | None

    @property
    def origin(self) -> str:
        """The source with its weight."""
        return self.source if self.weight is None else f"{self.source}, weight {self.weight:g}"


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row in its turns; `faults` says what must not be so. One whose media can't be used is `bad` and has no turns."""

    place: Place
    turns: tuple[ShownTurn, ...] = ()
    faults: tuple[str, ...] = ()
    bad: BadRow | None = None

    @property
    def tokens(self) -> int:
        """How many the model reads."""
        return sum(turn.tokens for turn in self.turns)

    @property
    def in_loss(self) -> int:
        """How many it learns to say."""
        return sum(turn.in_loss for turn in self.turns)

    @property
    def image_tokens(self) -> int:
        """How many stand for pictures."""
        return sum(span.image_tokens for span in self.pictures)

    @property
    def pictures(self) -> list[PictureSpan]:
        """Its pictures in the order of the text."""
        return [span for turn in self.turns for span in turn.spans if isinstance(span, PictureSpan)]


def show(
    seen: SeenRow | BadRow, plan: RowPlan, place: Place, chat: ChatTokenizer, vision_tokens: Mapping[int, int]
) -> ShownRow:
    """A row of a batch as it is shown, checked."""
    if isinstance(seen, BadRow):
        return ShownRow(place, bad=seen)
    return ShownRow(place, read_turns(seen, plan, chat), find_faults(seen, plan, chat, vision_tokens))
