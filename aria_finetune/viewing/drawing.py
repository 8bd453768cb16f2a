"""A row as markup: its facts, its turns, its spans, its pictures. Knows nothing of the page around it.

Data are hostile, and never markup: see `markup`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aria_finetune.data.tiles import Tile
from aria_finetune.redaction import redact
from aria_finetune.viewing.markup import Html, element, escaped, joined
from aria_finetune.viewing.rows import ShownRow
from aria_finetune.viewing.spans import PictureSpan, ShownTurn, Span, TextSpan
from aria_finetune.viewing.thumbnails import thumbnail

OPEN_CHARACTERS = 1500
"""Of a longer run of text the rest is folded."""

OPEN_PICTURES = 12
"""Of more pictures of a turn the rest is folded."""

_JOINT = 16


@dataclass(frozen=True)
class DrawnRow:
    """A row of the page, and what the list of rows says of it."""

    number: int
    sound: bool
    body: Html


def draw_row(row: ShownRow) -> DrawnRow:
    """A row as markup. Holds small pictures of its tiles, and the tiles no more."""
    place = row.place
    head = joined(
        element("h3", f"Row {place.number} ", element("small", f"of {place.total:,}")),
        element("p", place.where, class_="where"),
        facts([("id", place.id), ("source", place.origin), *_counts(row)]),
    )
    if row.bad is not None:
        told = f"{row.bad.media}: {row.bad.reason}: {row.bad.detail}"
        body = element("p", element("strong", "not shown: "), told, class_="bad")
    else:
        faults = element("ul", *(element("li", f"WRONG: {fault}") for fault in row.faults), class_="faults")
        body = joined(_shares(row), faults if row.faults else None, *map(_turn, row.turns))
    article = element("article", head, body, id=f"row-{place.number}", class_="row")
    return DrawnRow(place.number, row.bad is None and not row.faults, article)


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Names and values."""
    return element("dl", *(joined(element("dt", name), element("dd", value)) for name, value in pairs), class_="facts")


def _counts(row: ShownRow) -> list[tuple[str, str]]:
    if row.bad is not None:
        return []
    counts = f"{row.tokens:,}, of which {row.in_loss:,} in the loss and {row.image_tokens:,} image tokens"
    return [("tokens", counts)]


def _shares(row: ShownRow) -> Html:
    """A bar of the row's tokens by kind, in the order of the row."""
    bars, at = [], 0
    for span in (span for turn in row.turns for span in turn.spans):
        bars.append(element("rect", x=at, y=0, width=span.tokens, height=1, class_=_class(span)))
        at += span.tokens
    box = f"0 0 {max(at, 1)} 1"
    label = "the row's tokens by kind"
    return element("svg", *bars, class_="shares", viewBox=box, preserveAspectRatio="none", role="img", aria_label=label)


def _turn(turn: ShownTurn) -> Html:
    figures = element("small", f"{turn.tokens:,} tokens"), element("small", f"{turn.in_loss:,} in the loss")
    name = element("h4", turn.role or "no role", *figures)
    return element("section", name, element("div", *_spans(turn.spans), class_="tokens"), class_="turn")


def _spans(spans: Sequence[Span]) -> list[Html]:
    """The spans of a turn; from one picture too many to the last, folded."""
    pictures = [place for place, span in enumerate(spans) if isinstance(span, PictureSpan)]
    if len(pictures) <= OPEN_PICTURES:
        return [_span(span) for span in spans]
    first, last = pictures[OPEN_PICTURES], pictures[-1] + 1
    folded = element(
        "details",
        element("summary", f"{len(pictures) - OPEN_PICTURES:,} more pictures, {_tokens(spans[first:last]):,} tokens"),
        *map(_span, spans[first:last]),
        class_="more",
    )
    return [*map(_span, spans[:first]), folded, *map(_span, spans[last:])]


def _tokens(spans: Sequence[Span]) -> int:
    return sum(span.tokens for span in spans)


def _span(span: Span) -> Html:
    return _picture(span) if isinstance(span, PictureSpan) else _text(span)


def _text(span: TextSpan) -> Html:
    """A run of text by its tokens; where it holds a secret as a whole, because a part of one is not known as such."""
    title = f"{span.tokens:,} tokens, {'in the loss' if span.in_loss else 'not in the loss'}"
    whole = redact(span.text)
    pieces: Sequence[str] = span.pieces
    if whole != span.text:
        pieces, title = (whole,), f"{title}; a secret in it is hidden here, and not from the model"
    if len(whole) <= _JOINT:  # such as the time of a frame with the line break before it
        return _run(span, title, [element("i", *_with_marks(piece)) for piece in pieces])
    begin, rest = _folded(pieces)
    shown = _run(span, title, [element("i", escaped(piece)) for piece in begin])
    if not rest:
        return shown
    folded = _run(span, title, [element("i", escaped(piece)) for piece in rest])
    words = f"{sum(map(len, rest)):,} more characters"
    return joined(shown, element("details", element("summary", words), folded, class_="more"))


def _run(span: Span, title: str, pieces: Iterable[Html]) -> Html:
    return element("span", *pieces, class_=f"run {_class(span)}", title=title)


def _folded(pieces: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The pieces that are shown at once, about as many as fit, and the rest; a piece that is too long is cut."""
    length = 0
    for place, piece in enumerate(pieces):
        if len(piece) > OPEN_CHARACTERS:
            cut = OPEN_CHARACTERS - length
            return [*pieces[:place], piece[:cut]], [piece[cut:], *pieces[place + 1 :]]
        length += len(piece)
        if length > OPEN_CHARACTERS:
            return pieces[:place], pieces[place:]
    return pieces, ()


def _with_marks(piece: str) -> list[Html]:
    """A short text in one line: its line breaks are marks."""
    parts = piece.split("\n")
    mark = element("span", Html("&#8629;"), class_="break")
    return [escaped(parts[0]), *(joined(mark, escaped(part)) for part in parts[1:])]


def _picture(span: PictureSpan) -> Html:
    kind, label = _class(span), span.label
    caption = element(
        "figcaption",
        element("span", f"{span.before}{label}{span.after}", class_=f"run {kind}"),
        element("small", f" {span.in_loss:,} of its tokens are in the loss") if span.in_loss else None,
    )
    if span.picture is None:
        return element("figure", caption, class_=f"picture {kind}")
    first, *crops = span.picture.tiles
    if not crops:
        return element("figure", _thumbnail(first, label), caption, class_=f"picture {kind}")
    overview = _thumbnail(first, f"{label}, overview")
    parts = (_thumbnail(crop, f"{label}, crop {number}") for number, crop in enumerate(crops, 1))
    grid = element("div", *parts, class_=f"crops columns-{span.picture.columns}")
    return element("figure", element("div", overview, grid, class_="tiles"), caption, class_=f"picture split {kind}")


def _thumbnail(tile: Tile, words: str) -> Html:
    small = thumbnail(tile)
    return element("img", src=Html(small.uri), width=small.width, height=small.height, alt=words, title=words)


def _class(span: Span) -> str:
    if isinstance(span, PictureSpan):
        return "fault" if span.in_loss else span.kind
    return "loss" if span.in_loss else span.kind
