"""A row's tokens as turns, and a turn's as spans: runs that are of one kind, and in the loss or not.

Read from the ids and labels of a batch. The plan only tells which pictures they are, so a token that nobody planned
shows where it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from aria_finetune.data.chat import CONTROL_TOKENS, IGNORED, ChatTokenizer
from aria_finetune.data.rows import RowPlan
from aria_finetune.viewing.batches import SeenRow
from aria_finetune.viewing.pictures import ShownPicture, shown_pictures
from aria_finetune.viewing.pieces import Piece, decode_pieces

PictureKind = Literal["image", "frame"]
TextKind = Literal["role", "text"]


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Text of a message, or, of the kind `role`, the tokens around it that open and close the turn."""

    kind: TextKind
    pieces: tuple[str, ...]
    tokens: int
    in_loss: int

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class PictureSpan:
    """The tokens of one picture: `image_tokens` of it between the control tokens `before` and `after`.

    `picture` is None where the row has more runs of such tokens than pictures.
    """

    picture: ShownPicture | None
    before: str
    after: str
    image_tokens: int
    tokens: int
    in_loss: int

    @property
    def kind(self) -> PictureKind:
        """Of a video or not."""
        return "frame" if self.picture is not None and self.picture.noun == "frame" else "image"

    @property
    def label(self) -> str:
        """What stands for its image tokens."""
        if self.picture is None:
            return f"[no picture: {self.image_tokens} tokens]"
        return self.picture.label(self.image_tokens)


Span = TextSpan | PictureSpan


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """One turn; `role` as the tokens of its header say it."""

    role: str
    spans: tuple[Span, ...]

    @property
    def tokens(self) -> int:
        """How many it has."""
        return sum(span.tokens for span in self.spans)

    @property
    def in_loss(self) -> int:
        """How many of them are in the loss."""
        return sum(span.in_loss for span in self.spans)


def read_turns(seen: SeenRow, plan: RowPlan, chat: ChatTokenizer) -> tuple[ShownTurn, ...]:
    """The turns of a row; no token of it is left out."""
    reader = _Reader(chat, shown_pictures(plan, seen.tiles))
    for run in _runs(seen.shown, chat):
        reader.take(run)
    return tuple(ShownTurn(_role(spans), tuple(spans)) for spans in reader.turns)


@dataclass(frozen=True, slots=True)
class _Run:
    """Tokens that belong together: a picture's, a control token by itself, or text that is in the loss or not."""

    what: Literal["start", "end", "picture", "text"]
    ids: list[int]
    in_loss: int


def _runs(shown: Sequence[tuple[int, int]], chat: ChatTokenizer) -> Iterator[_Run]:
    ids = [index for index, _ in shown]
    supervised = [label != IGNORED for _, label in shown]
    control = {chat.start, chat.end, chat.prefix, chat.suffix, chat.image}
    at = 0
    while at < len(ids):
        behind = at + 1
        if ids[at] == chat.start:
            what: Literal["start", "end", "picture", "text"] = "start"
        elif ids[at] == chat.end:
            what = "end"
        elif ids[at] in control:
            what, behind = "picture", _end_of_picture(ids, at, chat)
        else:
            what = "text"
            while behind < len(ids) and ids[behind] not in control and supervised[behind] == supervised[at]:
                behind += 1
        yield _Run(what, ids[at:behind], sum(supervised[at:behind]))
        at = behind


def _end_of_picture(ids: Sequence[int], at: int, chat: ChatTokenizer) -> int:
    """Behind the suffix of the picture that begins at `at`, or behind as much of a picture as is there."""
    if ids[at] == chat.suffix:
        return at + 1
    at += ids[at] == chat.prefix
    while at < len(ids) and ids[at] == chat.image:
        at += 1
    return at + (at < len(ids) and ids[at] == chat.suffix)


class _Reader:
    """Puts runs together to turns. Text is that of a header behind a start, and of no message behind an end."""

    def __init__(self, chat: ChatTokenizer, pictures: Iterator[ShownPicture]) -> None:
        self.turns: list[list[Span]] = []
        self._chat = chat
        self._pictures = pictures
        self._behind = "text"

    def take(self, run: _Run) -> None:
        if run.what == "start" or not self.turns:
            self.turns.append([])
        if run.what == "picture":
            self._add_picture(run)
        elif run.what == "text":
            self._add_text(run)
        else:
            spelled = CONTROL_TOKENS[0] if run.what == "start" else CONTROL_TOKENS[1]
            self._add("role", [Piece(spelled, 1)], in_loss=run.in_loss > 0)
        self._behind = run.what

    def _add_text(self, run: _Run) -> None:
        pieces = decode_pieces(self._chat, run.ids)
        cut = 0
        if self._behind == "start":
            cut = next((place for place, piece in enumerate(pieces, 1) if "\n" in piece.text), len(pieces))
        elif self._behind == "end":
            cut = len(pieces)
        self._add("role", pieces[:cut], in_loss=run.in_loss > 0)
        self._add("text", pieces[cut:], in_loss=run.in_loss > 0)

    def _add(self, kind: TextKind, pieces: Sequence[Piece], *, in_loss: bool) -> None:
        if not pieces:
            return
        spans = self.turns[-1]
        texts, tokens = tuple(piece.text for piece in pieces), sum(piece.tokens for piece in pieces)
        last = spans[-1] if spans else None
        if isinstance(last, TextSpan) and last.kind == kind and bool(last.in_loss) is in_loss:
            spans.pop()
            texts, tokens = (*last.pieces, *texts), last.tokens + tokens
        spans.append(TextSpan(kind, texts, tokens, tokens if in_loss else 0))

    def _add_picture(self, run: _Run) -> None:
        chat = self._chat
        images = run.ids.count(chat.image)
        self.turns[-1].append(
            PictureSpan(
                next(self._pictures, None) if images else None,
                CONTROL_TOKENS[2] if run.ids[0] == chat.prefix else "",
                CONTROL_TOKENS[3] if run.ids[-1] == chat.suffix else "",
                images,
                len(run.ids),
                run.in_loss,
            )
        )


def _role(spans: Sequence[Span]) -> str:
    first = spans[0]
    if isinstance(first, PictureSpan) or not first.text.startswith(CONTROL_TOKENS[0]):
        return ""
    return first.text.removeprefix(CONTROL_TOKENS[0]).partition("\n")[0].strip()
