"""Turns: what a converter collects before the parts of a record are numbered.

A turn is a role and a row of pieces: text, a medium, or a `Slot`, the place of a medium that is named somewhere
else in the record. `draft` makes the canonical form of turns without slots. Role names of all chat formats are
mapped here; whether the roles follow each other properly is checked in `rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part, PartType, Role

_ROLE_OF_NAME: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of an image or video whose reference stands elsewhere in the record."""

    kind: PartType


Piece = str | MediaReference | Slot


@dataclass(slots=True)
class Turn:
    """One turn of a conversation before its media are numbered; `train` as in `Message`."""

    role: Role
    pieces: tuple[Piece, ...]
    train: bool | None = None


def role(name: object, where: str) -> Role:
    """The canonical role of a name in the source.

    Raises:
        RecordError: `bad_roles`, the name is not known.
    """
    found = _ROLE_OF_NAME.get(name) if isinstance(name, str) else None
    if found is None:
        raise RecordError("bad_roles", f"{where} has the unknown role {name!r:.60}")
    return found


def draft(
    turns: Sequence[Turn],
    *,
    references: Sequence[str] = (),
    tools: str | None = None,
    meta: Mapping[str, Any] | None = None,
    repairs: Iterable[str] = (),
    document: bool = False,
) -> Draft:
    """Number the media of `turns` in the order of their first use; one that is shown twice is held once.

    Pieces of text that follow each other become one part and empty ones none. Beside media, text of nothing but
    white space is dropped and counted as `blank_text_dropped`: a line break between two images separates
    placeholders in the source and says nothing once they are images.
    """
    numbers: dict[MediaReference, int] = {}
    messages, dropped = [], False
    for turn in turns:
        pieces = turn.pieces
        if len(pieces) == 1 and isinstance(pieces[0], str):  # most turns are one text
            content: tuple[Part, ...] = (Part("text", pieces[0]),) if pieces[0] else ()
        else:
            parts = _parts(_joined(pieces), numbers)
            kept = [part for part in parts if part.text is None or part.text.strip()]
            if len(kept) < len(parts) and any(part.media is not None for part in parts):
                parts, dropped = kept, True
            content = tuple(parts)
        messages.append(Message(turn.role, content, turn.train))
    names = (*repairs, "blank_text_dropped") if dropped else tuple(repairs)
    return Draft(tuple(messages), tuple(numbers), tuple(references), tools, dict(meta or {}), names, document)


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece != "":
            joined.append(piece)
    return joined


def _parts(pieces: Iterable[Piece], numbers: dict[MediaReference, int]) -> list[Part]:
    parts = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(Part("text", piece))
        elif isinstance(piece, MediaReference):
            parts.append(Part(piece.kind, None, numbers.setdefault(piece, len(numbers))))
        else:
            raise TypeError(f"a slot for {piece.kind} was never filled")
    return parts
