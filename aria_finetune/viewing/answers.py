"""The page of an evaluation: figures, and each row with its pictures, question, expected and given answers, scores.

Which rows are seen, all, those not right, or those whose score changed, is chosen by buttons that the style sheet looks
at; nothing runs. Data and answers are hostile, and never markup: see `markup`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aria_finetune.data.tiles import Tile
from aria_finetune.viewing.document import document, mark_of
from aria_finetune.viewing.drawing import DrawnRow, facts
from aria_finetune.viewing.markup import Html, element, joined
from aria_finetune.viewing.thumbnails import thumbnail

MARK = mark_of("evaluate")
PICTURE_SIDE = 256
"""Longest side of a picture in pixels."""

SHOWN_CHARACTERS, SHOWN_ACCEPTED = 4000, 12
_FILTERS = (("all", "all rows"), ("wrong", "not right"), ("changed", "score changed"))
_COLUMNS = ("metric", "who", "score", "95 %", "unparsed", "on base", "95 %", "p")


@dataclass(frozen=True, slots=True)
class Given:
    """An answer: who gave it, what it is worth from 0 to 1, None if it was not scored, what it was read as, if it was cut."""

    who: str
    answer: str
    value: float | None
    right: bool
    parsed: bool
    read: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """A row with its answers; `where` is its `file:row`, `pictures` how many it has.

    `judged` are those whose answers make the row wrong, and changed where they are worth something else than the first.
    """

    number: int
    id: str
    where: str
    metric: str
    question: str
    expected: Sequence[str]
    given: Sequence[Given]
    pictures: int
    judged: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What stands above the rows: names and values, a line of figures for each metric and who, and how many rows of all."""

    title: str
    facts: Sequence[tuple[str, str]]
    table: Sequence[tuple[str, ...]]
    shown: int
    total: int


def draw_answered(row: Answered, tiles: Sequence[Tile]) -> DrawnRow:
    """A row as markup. Holds small pictures of its tiles, and the tiles no more."""
    judged = [one for one in row.given if one.who in row.judged] or list(row.given)
    wrong = any(one.value is not None and not one.right for one in judged)
    values = {one.value for one in (*row.given[:1], *judged)}
    kinds = ["row", "answered", *(["wrong"] if wrong else []), *(["changed"] if len(values) > 1 else [])]
    more = row.pictures - len(tiles)
    pictures = [
        element("div", *(_picture(tile, number) for number, tile in enumerate(tiles, 1)), class_="pictures"),
        element("p", f"and {more:,} more pictures", class_="faint") if more > 0 and tiles else None,
        element("p", f"{more:,} pictures, not shown: the page is full of them", class_="faint")
        if more and not tiles
        else None,
    ]
    article = element(
        "article",
        element("h3", f"Row {row.number} ", element("small", f"{row.metric}, {row.where}, {row.id}", class_="where")),
        *pictures,
        _part("question", row.question),
        _part("expected", "\n".join(row.expected[:SHOWN_ACCEPTED])),
        *map(_answer, row.given),
        id=f"row-{row.number}",
        class_=" ".join(kinds),
    )
    return DrawnRow(row.number, not wrong, article)


def _picture(tile: Tile, number: int) -> Html:
    small = thumbnail(tile, PICTURE_SIDE)
    return element("img", src=Html(small.uri), width=small.width, height=small.height, alt=f"picture {number}")


def _part(name: str, said: str) -> Html:
    return element("div", element("h4", name), element("div", _cut(said), class_="said"), class_="turn")


def _answer(given: Given) -> Html:
    if given.value is None:
        mark, kind = "not scored", "faint"
    else:
        words = (
            "right" if given.right else "unparsed" if not given.parsed else "wrong" if given.value == 0 else "partly"
        )
        mark, kind = f"{words}, {given.value:.3g}", "good" if given.right else "poor"
    read = element("small", f"read as {given.read}") if given.read else None
    name = element("h4", given.who, element("small", f"{mark}, cut short" if given.cut else mark, class_=kind))
    return element("div", name, element("div", _cut(given.answer), read, class_="said"), class_="turn")


def _cut(said: str) -> str:
    more = len(said) - SHOWN_CHARACTERS
    return said if more <= 0 else f"{said[:SHOWN_CHARACTERS]} ... and {more:,} more characters"


def compose(comparison: Comparison, rows: Sequence[DrawnRow]) -> str:
    """The whole page."""
    head = element("tr", *(element("th", name, scope="col") for name in _COLUMNS))
    lines = [element("tr", *(element("td", cell) for cell in line)) for line in comparison.table]
    shown = "All rows" if comparison.shown == comparison.total else f"{comparison.shown:,} of {comparison.total:,} rows"
    first = "" if comparison.shown == comparison.total else ", first those whose score changed, then those not right"
    top = element(
        "header",
        element("h1", "What was answered"),
        element("p", comparison.title, class_="where"),
        element("div", element("table", head, *lines), class_="scroll"),
        facts(comparison.facts),
        element("p", f"{shown}{first}."),
    )
    return document(
        MARK,
        f"{comparison.title}: what was answered",
        ("page.css", "answers.css"),
        top,
        _filters(),
        element("main", *(row.body for row in rows)),
    )


def _filters() -> Html:
    """Before the rows and beside them: the style sheet looks which one is checked."""
    parts: list[Html] = []
    for name, words in _FILTERS:
        checked = "checked" if name == "all" else None
        parts.append(element("input", type="radio", name="filter", id=f"show-{name}", checked=checked))
        parts.append(element("label", f" {words} ", for_=f"show-{name}"))
    return joined(*parts)
