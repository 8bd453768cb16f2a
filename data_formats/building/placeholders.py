"""Media named in one place of a record and shown in another: `<image>` in the text, `images` beside it.

Text is split exactly at the placeholder; no character around it is removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from aria_finetune.data_formats.building.turns import Piece, Slot, Turn
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import MediaReference, PartType

_PLACEHOLDER = re.compile(r"(<image>|<video>)")
_KIND_OF_PLACEHOLDER: dict[str, PartType] = {"<image>": "image", "<video>": "video"}


def has_placeholder(text: str) -> bool:
    """Whether `<image>` or `<video>` stands in `text`."""
    return _PLACEHOLDER.search(text) is not None


def split(turn: Turn) -> Turn:
    """The turn with every placeholder in its text turned into a `Slot`."""
    if not any(isinstance(piece, str) and _PLACEHOLDER.search(piece) for piece in turn.pieces):
        return turn
    return Turn(turn.role, tuple(_split_pieces(turn.pieces)), turn.train)


def fill(
    turns: Sequence[Turn], images: Sequence[MediaReference], videos: Sequence[MediaReference], *, add_missing: bool
) -> tuple[list[Turn], tuple[str, ...]]:
    """Put `images` and `videos` into the slots of `turns` in order; returns the turns and the repairs made.

    As many slots as media of each kind are needed, with two exceptions. Where a record has videos only and all its
    slots are for images, the videos take them, as LLaVA-Video writes them. Where there is no slot at all and
    `add_missing` is set, all media go before the text of the first user turn, images first (`placeholder_added`).

    Raises:
        RecordError: `placeholder_mismatch`, the numbers differ otherwise.
    """
    slots = [piece.kind for turn in turns for piece in turn.pieces if isinstance(piece, Slot)]
    if not slots and (images or videos) and add_missing:
        return _put_first(turns, (*images, *videos)), ("placeholder_added",)
    if videos and not images and slots == ["image"] * len(videos):
        return _put_in_place(turns, {"image": iter(videos)}), ()
    named: tuple[tuple[PartType, Sequence[MediaReference]], ...] = (("image", images), ("video", videos))
    for kind, media in named:
        if slots.count(kind) != len(media):
            detail = f"{slots.count(kind)} {kind} placeholders for {len(media)} {kind}s"
            raise RecordError("placeholder_mismatch", detail)
    return _put_in_place(turns, {"image": iter(images), "video": iter(videos)}), ()


def _split_pieces(pieces: Sequence[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        if not isinstance(piece, str):
            yield piece
            continue
        for fragment in _PLACEHOLDER.split(piece):
            kind = _KIND_OF_PLACEHOLDER.get(fragment)
            yield fragment if kind is None else Slot(kind)


def _put_in_place(turns: Sequence[Turn], media: dict[PartType, Iterator[MediaReference]]) -> list[Turn]:
    return [_filled(turn, media) if any(isinstance(p, Slot) for p in turn.pieces) else turn for turn in turns]


def _filled(turn: Turn, media: dict[PartType, Iterator[MediaReference]]) -> Turn:
    pieces = tuple(next(media[piece.kind]) if isinstance(piece, Slot) else piece for piece in turn.pieces)
    return Turn(turn.role, pieces, turn.train)


def _put_first(turns: Sequence[Turn], media: Sequence[MediaReference]) -> list[Turn]:
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise RecordError("bad_roles", "no user turn that the media could go into")
    return [
        Turn(turn.role, (*media, *turn.pieces), turn.train) if number == first else turn
        for number, turn in enumerate(turns)
    ]
