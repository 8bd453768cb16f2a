"""The page of answers: what it shows of a row, that hostile answers stay text, which rows its buttons leave."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browsing import Opened, browse, needs_chromium, picture_sizes
from html_pages import Element, picture, read_page

from aria_finetune.data.tiles import Tile
from aria_finetune.viewing.answers import MARK, SHOWN_CHARACTERS, Answered, Comparison, Given, compose, draw_answered

HOSTILE = (
    "<script>document.title = 'owned'</script></style><img src='https://example.org/x.png'> &lt; \" ' \x1b[2J \u202e"
)
RIGHT, WRONG = (
    Given("base", "A cat.", 1.0, right=True, parsed=True),
    Given("base", "A dog.", 0.0, right=False, parsed=True),
)
ROW = Answered(
    3,
    "rows:3",
    "rows.json:2",
    "exact",
    "What is it?",
    ("a cat", "cat"),
    [WRONG, replace(RIGHT, who="adapter")],
    1,
    ["adapter"],
)


def tile(height: int = 490, width: int = 350) -> Tile:
    pixels = np.zeros((3, 490, 490), np.uint8)
    pixels[0, :height, :width] = 200
    return Tile(pixels, height, width)


def composed(*rows: tuple[Answered, list[Tile]], total: int | None = None) -> tuple[str, Element]:
    comparison = Comparison(
        "my.yaml",
        [("exact", "exact match; 2 rows")],
        [("exact", "base", "0.500", "0.1 to 0.9", "0", "", "", "")],
        len(rows),
        total or len(rows),
    )
    text = compose(comparison, [draw_answered(*row) for row in rows])
    return text, read_page(text)


def test_a_row_with_its_picture_question_and_answers() -> None:
    text, html = composed((ROW, [tile()]))
    assert text.startswith(MARK)
    article = html.one("article")
    assert article.attributes["id"] == "row-3"
    assert article.classes == {"row", "answered", "changed"}
    assert "rows.json:2" in article.one("h3").text
    parts = [(part.one("h4").text, part.one("div", "said").text) for part in article.all("div", "turn")]
    assert parts == [
        ("question", "What is it?"),
        ("expected", "a cat\ncat"),
        ("basewrong, 0", "A dog."),
        ("adapterright, 1", "A cat."),
    ]
    (image,) = article.all("img")
    assert picture(image).size == (183, 256) == (int(image.attributes["width"]), int(image.attributes["height"]))
    assert [cell.text for cell in html.all("td")] == ["exact", "base", "0.500", "0.1 to 0.9", "0", "", "", ""]
    assert "All rows." in html.text


@pytest.mark.parametrize(
    ("given", "classes", "marks"),
    [
        ([RIGHT, replace(RIGHT, who="adapter")], set(), ["right, 1", "right, 1"]),
        ([WRONG, replace(WRONG, who="adapter")], {"wrong"}, ["wrong, 0", "wrong, 0"]),
        ([RIGHT, replace(WRONG, who="adapter")], {"wrong", "changed"}, ["right, 1", "wrong, 0"]),
        (
            [RIGHT, replace(RIGHT, who="adapter"), replace(WRONG, who="blind")],
            set(),
            ["right, 1", "right, 1", "wrong, 0"],
        ),
        ([replace(WRONG, value=0.25)], {"wrong"}, ["partly, 0.25"]),
        ([replace(WRONG, parsed=False)], {"wrong"}, ["unparsed, 0"]),
        ([replace(WRONG, cut=True)], {"wrong"}, ["wrong, 0, cut short"]),
        ([replace(WRONG, value=None)], set(), ["not scored"]),
    ],
)
def test_what_a_row_is_marked_as(given: list[Given], classes: set[str], marks: list[str]) -> None:
    _, html = composed((replace(ROW, given=given), []))
    article = html.one("article")
    assert article.classes - {"row", "answered"} == classes
    assert [heading.one("small").text for heading in article.all("h4") if heading.all("small")] == marks


def test_pictures_that_are_not_shown_are_counted() -> None:
    _, html = composed(
        (replace(ROW, pictures=9), [tile(), tile()]), (replace(ROW, number=4, pictures=2), []), total=900
    )
    first, second = html.all("article")
    assert "and 7 more pictures" in first.text
    assert "2 pictures, not shown" in second.text
    assert "2 of 900 rows, first those whose score changed" in html.text


def test_what_is_long_is_cut() -> None:
    text, html = composed((replace(ROW, given=[replace(WRONG, answer="x" * 10**6)]), []))
    assert "and 996,000 more characters" in html.one("article").text
    assert len(text) < 20_000 + SHOWN_CHARACTERS


def test_hostile_words_stay_words() -> None:
    given = [Given(HOSTILE, HOSTILE, 0.5, right=False, parsed=True, read=HOSTILE)]
    row = Answered(1, HOSTILE, HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), given, 0)
    text, html = composed((row, []))
    assert not re.search(r"<script|<img|javascript:|https?://", text.replace("&#x27;https://", ""))
    assert html.all("script") == html.all("img") == []
    assert html.one("article").text.count("document.title = 'owned'") == 8
    assert "\\x1b[2J \\u202e" in html.one("article").text
    assert "\u202e" not in text


def rows() -> list[tuple[Answered, list[Tile]]]:
    right, wrong = [RIGHT, replace(RIGHT, who="adapter")], [WRONG, replace(WRONG, who="adapter")]
    return [
        (replace(ROW, number=1, given=right), [tile()]),
        (replace(ROW, number=2, given=wrong), [tile(336, 490)]),
        (ROW, [tile(), tile()]),
    ]


@needs_chromium
class TestBrowser:
    """The page as Chromium takes it."""

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Opened]:
        hostile = Answered(4, "x", HOSTILE, "exact", HOSTILE, (HOSTILE,), [replace(WRONG, answer=HOSTILE)] * 2, 0)
        (tmp_path / "page.html").write_text(composed(*rows(), (hostile, []))[0], encoding="utf-8")
        with browse(tmp_path / "page.html") as opened:
            yield opened

    def test_it_loads_without_a_complaint_and_runs_nothing(self, opened: Opened) -> None:
        assert opened.said == opened.asked == []
        assert opened.page.title() == "my.yaml: what was answered"

    def test_pictures_are_visible(self, opened: Opened) -> None:
        assert picture_sizes(opened.page) == [(183, 256), (256, 176), (183, 256), (183, 256)]
        for image in opened.page.locator("img").all():
            assert image.is_visible()
            assert image.bounding_box()["width"] > 100

    @pytest.mark.parametrize(
        ("button", "left"),
        [("all", ["row-1", "row-2", "row-3", "row-4"]), ("wrong", ["row-2", "row-4"]), ("changed", ["row-3"])],
    )
    def test_its_buttons_choose_rows(self, opened: Opened, button: str, left: list[str]) -> None:
        opened.page.locator(f"label[for=show-{button}]").click()
        rows = opened.page.locator("article").all()
        assert [row.get_attribute("id") for row in rows if row.is_visible()] == left
