"""The page around the rows: figures, legend, rejected rows, in one file that fetches nothing and runs nothing.

Colours are never alone: kinds also differ by underline, border and words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aria_finetune.conversion import Reject
from aria_finetune.viewing.document import document, mark_of
from aria_finetune.viewing.drawing import DrawnRow, facts
from aria_finetune.viewing.markup import Html, element, joined

MARK = mark_of("inspect")
"""How every page begins, by which one is known that may be replaced."""

LISTED_REJECTS = 100
_LEGEND = (
    ("role", "role", "opens or closes a turn"),
    ("text", "text", "is read, and not in the loss"),
    ("loss", "underlined", "is in the loss: what it learns to say"),
    ("image", "dashed border", "an image or a page, and its tokens"),
    ("frame", "dotted border", "a frame of a video, and its tokens"),
)


@dataclass(frozen=True)
class Overview:
    """What stands above and below the rows.

    `facts` are names and values, `counts` the figures of each set of rows, `rejects` the rejected ones of each, `shown`
    says which rows are on the page, `refusal` why training would not begin or not go on with them.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    counts: Mapping[str, Mapping[str, int]]
    rejects: Mapping[str, Sequence[Reject]]
    shown: str
    refusal: str | None


def compose(overview: Overview, rows: Iterable[DrawnRow]) -> str:
    """The whole page."""
    drawn = list(rows)
    body = _top(overview), _switch(), element("main", _rows(overview, drawn), _rejects(overview))
    return document(MARK, f"{overview.title}: what the model sees", ("page.css",), *body)


def _top(overview: Overview) -> Html:
    columns = ("rows", "tokens", "labels", "images", "videos", "rejected")
    head = ("", "rows", "tokens", "in the loss", "images", "videos", "rejected")
    lines = [
        element("tr", element("th", kind, scope="row"), *(_number(counts[column]) for column in columns))
        for kind, counts in overview.counts.items()
    ]
    table = element("table", element("tr", *(element("th", name, scope="col") for name in head)), *lines)
    legend = (
        element("li", element("span", sample, class_=f"run {kind}"), meaning) for kind, sample, meaning in _LEGEND
    )
    return element(
        "header",
        element("h1", "What the model sees"),
        element("p", overview.title, class_="where"),
        element("p", overview.refusal, class_="verdict", role="alert") if overview.refusal else None,
        element("div", table, class_="scroll"),
        facts(overview.facts),
        element("ul", *legend, class_="legend"),
    )


def _switch() -> Html:
    """Before the rows and beside them: the style sheet looks whether it is checked."""
    return joined(
        element("input", type="checkbox", id="boundaries"),
        element("label", " show where tokens begin", for_="boundaries"),
    )


def _rows(overview: Overview, rows: Sequence[DrawnRow]) -> Html:
    jumps = (
        element(
            "a",
            f"{row.number}{'' if row.sound else ' !'}",
            href=f"#row-{row.number}",
            class_=None if row.sound else "wrong",
        )
        for row in rows
    )
    return element(
        "section",
        element("h2", "Rows"),
        element("p", overview.shown),
        element("nav", *jumps, class_="jumps", aria_label="rows") if rows else None,
        *(row.body for row in rows),
    )


def _rejects(overview: Overview) -> Html:
    sections = [_rejects_of(kind, rejects) for kind, rejects in overview.rejects.items() if rejects]
    return element("section", element("h2", "Rejected rows"), *(sections or [element("p", "None.")]))


def _rejects_of(kind: str, rejects: Sequence[Reject]) -> Html:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(one.reason for one in rejects).most_common())
    more = len(rejects) - LISTED_REJECTS
    lines = [
        element(
            "tr",
            element("td", f"{one.file}:{one.ordinal}", class_="where"),
            element("td", element("code", one.reason)),
            element("td", one.detail),
            element("td", one.id, class_="where"),
        )
        for one in rejects[:LISTED_REJECTS]
    ]
    head = element("tr", *(element("th", name, scope="col") for name in ("row", "reason", "detail", "id")))
    return joined(
        element("p", f"{len(rejects):,} of {kind}: {reasons}"),
        element("div", element("table", head, *lines), class_="scroll"),
        element("p", f"and {more:,} more") if more > 0 else None,
    )


def _number(value: int) -> Html:
    return element("td", f"{value:,}", class_="number")
