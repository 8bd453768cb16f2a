"""docs/recipes.md says what the heads of the recipes say, and what the planner reckons."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipe_heads import CARDS, REAL, TASKS, Head, peak_bytes

from aria_finetune.planner.cards import find_card
from aria_finetune.planner.work import ASSUMED_EFFICIENCY, row_work

PAGE = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")


def table(section: str) -> list[list[str]]:
    """The rows below the first table's head in the part of the page that begins with `section`."""
    lines = [line for line in PAGE.split(section)[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_published_figures_are_those_of_the_heads() -> None:
    rows = {row[0].strip("`"): row[3] for row in table("# Recipes")}
    assert set(rows) == set(TASKS)
    for name, figure in rows.items():
        published = Head.of(name).said["Published"]
        for number in re.findall(r"\d+\.\d+", figure):
            assert number in published.split(" (")[0]
        assert (figure == "none") is (published == "none")


def test_peaks_are_the_planner_s() -> None:
    rows = table("\n## Cards")
    assert {row[0].strip("`") for row in rows} == set(TASKS)
    for name, *peaks, added in ([row[0].strip("`"), *row[1:]] for row in rows):
        assert peaks == [f"{peak_bytes(name, card) / 2**30:.1f}" for card in CARDS]
        overrides = " ".join(Head.of(name).overrides("80 GB"))
        assert added == (f"`{overrides}`" if overrides else "")


@pytest.mark.parametrize("row", table("\n## Time"), ids=lambda row: row[0])
def test_hours_are_the_planner_s(row: list[str]) -> None:
    _, rows, tokens, labels, pictures, *hours = row
    shown = re.fullmatch(r"(\d+) at (490|980)", pictures)
    tiles = {int(shown[2]): int(shown[1])} if shown else {}
    work = row_work(REAL, number(tokens), number(labels), tiles, checkpointing=True).total * number(rows)
    for said, card in zip(hours, CARDS.values(), strict=True):
        seconds = work / (find_card(card).teraflops * 1e12 * ASSUMED_EFFICIENCY)
        assert said == (f"{seconds / 3600:.1f}" if seconds >= 180 else "< 0.1")


def number(text: str) -> int:
    return int(text.replace(",", ""))
