"""What the model has read of a conversation, so that the next turn need not be read from its beginning.

A turn is rendered anew with all before it. As far as ids and pictures are the same, keys and values are too; from where they differ,
as where an answer's text is tokenised in another way than the model wrote it, they are forgotten. Knows ids, not who says them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture in a conversation: its `tokens` begin at `place`, and `what` tells it from another."""

    place: int
    tokens: int
    what: Hashable


@dataclass(slots=True)
class Kept:
    """The ids and pictures of one conversation, with keys and values of all of them."""

    ids: list[int] = field(default_factory=list)
    pictures: list[Seen] = field(default_factory=list)
    cache: DynamicCache = field(default_factory=DynamicCache)

    def cut(self, ids: Sequence[int], pictures: Sequence[Seen]) -> int:
        """Forget all from where a conversation differs; returns how many of its tokens need not be read again.

        The last token always is, for what comes after it; and of a picture all tokens are, or none.

        Args:
            ids: the whole conversation.
            pictures: its pictures in order.
        """
        same = shared(self.ids, ids[:-1])
        known = shared(self.pictures, pictures)
        same = min([same, *(seen.place for seen in (*self.pictures[known:], *pictures[known:]))])
        same = min([same, *(seen.place for seen in pictures if seen.place < same < seen.place + seen.tokens)])
        self.ids = self.ids[:same]
        self.pictures = [seen for seen in self.pictures if seen.place < same]
        for layer in self.cache.layers:
            # `Cache.crop` takes the length to keep or the tokens to remove, by the version of transformers.
            layer.keys, layer.values = layer.keys[:, :, :same], layer.values[:, :, :same]
        return same

    def forget(self) -> None:
        """Begin anew."""
        self.ids, self.pictures, self.cache = [], [], DynamicCache()


def shared(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """How many values two sequences have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
