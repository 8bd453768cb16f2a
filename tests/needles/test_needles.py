"""Needles lie where they say, rows are as long as they say, and the grid counts what was found."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from aria_finetune.conversion import read_dataset
from aria_finetune.data_formats.record import Record
from aria_finetune.errors import UserError
from aria_finetune.evaluation import EvaluationOptions, evaluate
from aria_finetune.material import prepare, prepare_prompts
from aria_finetune.needles import NeedleOptions, hide_needles
from aria_finetune.needles.grid import Hidden, grid_of, hidden_in, is_found, write_grid
from aria_finetune.needles.hiding import SEGMENTS, Cell, draw_number
from aria_finetune.recipe import Recipe, load_recipe

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
QUIET = Console(file=io.StringIO())
OPTIONS = NeedleOptions(lengths=(1024, 2048), depths=(0, 50, 100), rows=2)


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    def make(*overrides: str) -> Recipe:
        file = tmp_path / "recipe.yaml"
        file.write_text(
            "model: {path: tiny, device: cpu}\n"
            f"data: {{train: [{{path: {DATA}/warmth-train.jsonl}}, {{path: {DATA}/chat.jsonl}}], image_size: 490}}\n"
        )
        return load_recipe(file, overrides)

    return make


@pytest.fixture
def made(recipe_of: Callable[..., Recipe], tmp_path: Path) -> Path:
    report = hide_needles(recipe_of(), tmp_path / "needles", OPTIONS, QUIET)
    assert report["written"] == 2 * 2 * 3 * 2
    return tmp_path / "needles"


def needle_place(record: Record) -> int:
    """Which part of the question holds the needle."""
    parts = record.messages[0].content
    if record.id.startswith("needle:text"):
        (place,) = [
            n for n, part in enumerate(parts) if "secret number of" in (part.text or "") and part is not parts[-1]
        ]
        return place
    (place,) = [n for n, part in enumerate(parts) if part.media is not None
                and record.media[part.media].origin == f"{record.references[0]}.png"]  # fmt: skip
    return place


def test_the_needle_is_at_its_depth_and_the_row_of_its_length(
    made: Path, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Depth by the tokens of the row as it is planned, within one straw of it, of which the longest has about 170."""
    material = prepare(recipe_of(f"data.train=[{{path: {made}}}]"), tmp_path / "store")
    assert len(material.train_rows.plans) == 24
    cells = Counter[Cell]()
    for plan in material.train_rows.plans:
        record, needle = plan.record, hidden_in(plan.record)
        assert needle is not None
        cells[needle.cell] += 1
        assert needle.cell.length - 200 < plan.tokens <= needle.cell.length
        (user, _) = plan.turns
        place = needle_place(record)
        before, whole = (
            material.chat.encode([type(user)("user", user.content[:end])]).ids for end in (place, len(user.content))
        )
        assert len(before) / len(whole) == pytest.approx(needle.cell.depth / 100, abs=200 / needle.cell.length)
        if needle.cell.depth == 0:
            assert place == 0
        said = "".join(part.text or "" for part in record.messages[0].content)
        assert said.endswith("Answer with the number alone.")
        assert said.count(needle.answer) == (needle.cell.kind == "text")
        assert record.references == (needle.answer,)
    assert set(cells.values()) == {2}
    assert len(cells) == 12


def test_depths_of_one_length_differ_in_nothing_else(made: Path) -> None:
    """The same straws in the same order; and every needle is another."""
    straws: dict[tuple[int, str], set[str]] = {}
    answers = []
    for record in read_dataset(made, verify=True):
        facts = json.loads(record.meta)["needle"]
        number = record.id.rpartition(":")[2]
        if facts["kind"] == "text":
            straws.setdefault((facts["length"], number), set()).add(json.dumps(facts["straws"]))
        answers.append(facts["answer"])
    assert len(straws) == 4
    assert all(len(kinds) == 1 for kinds in straws.values())
    assert len(set(answers)) == len(answers)


def test_the_same_seed_makes_the_same_bytes(recipe_of: Callable[..., Recipe], made: Path, tmp_path: Path) -> None:
    for seed, same in ((42, True), (43, False)):
        folder = tmp_path / f"again-{seed}"
        hide_needles(recipe_of(f"train.seed={seed}"), folder, OPTIONS, QUIET)
        assert ((folder / "data-00000.jsonl").read_bytes() == (made / "data-00000.jsonl").read_bytes()) is same


def lit(picture: Image.Image, left: int, top: int) -> str:
    """Which segments of a digit are dark, looked at in the middle of each."""
    spots = {"a": (33, 7), "b": (59, 32), "c": (59, 98), "d": (33, 123), "e": (7, 98), "f": (7, 32), "g": (33, 65)}
    pixels = np.asarray(picture.convert("L"))
    return "".join(name for name, (x, y) in spots.items() if pixels[top + y, left + x] < 100)


def test_the_odd_picture_shows_its_number() -> None:
    picture = Image.open(io.BytesIO(draw_number("58230")))
    assert picture.size == (490, 490)
    first = (490 - 5 * 86 + 20) // 2
    for place, digit in enumerate("58230"):
        assert set(lit(picture, first + place * 86, 180)) == set(SEGMENTS[digit])
    assert len({frozenset(segments) for segments in SEGMENTS.values()}) == 10, "no two digits look alike"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("58230", True),
        ("The secret number of the violin is 58230.", True),
        ("58,230", True),
        ("58231", False),
        ("158230", False),
        ("58230 or 58231", False),
        ("", False),
        ("In 2024 it was 58230", True),
    ],
)
def test_what_counts_as_found(answer: str, found: bool) -> None:
    assert is_found("58230", answer) is found


def test_the_grid_counts_by_cell(tmp_path: Path) -> None:
    cells = [Cell("text", 1024, 0), Cell("text", 1024, 0), Cell("text", 2048, 100), Cell("image", 1024, 50)]
    needles: list[Hidden | None] = [*(Hidden(cell, "12345") for cell in cells), None]
    grid = grid_of(needles, {"base": ["12345", "no", "12345", "no", "x"], "adapter": ["12345"] * 5})
    entry = {"length": 1024, "depth": 0, "rows": 2, "found": 1, "accuracy": 0.5}
    assert grid["base"]["text"] == [entry, {"length": 2048, "depth": 100, "rows": 1, "found": 1, "accuracy": 1.0}]
    assert [cell["accuracy"] for cell in grid["base"]["image"]] == [0.0]
    assert all(cell["accuracy"] == 1 for cells in grid["adapter"].values() for cell in cells)
    write_grid(tmp_path, grid)
    assert json.loads((tmp_path / "needles.json").read_text()) == grid
    colours = np.asarray(Image.open(tmp_path / "needles.png").convert("RGB")).reshape(-1, 3)
    # The ends of the map RdYlGn: all found is (0, 104, 55), none (165, 0, 38).
    for colour in ((0, 104, 55), (165, 0, 38)):
        assert (np.abs(colours.astype(int) - colour).max(1) < 4).sum() > 1000


def test_evaluate_draws_the_grid(made: Path, recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(f"data.eval=[{{path: {made}}}]")
    output = tmp_path / "evaluation"
    evaluate(recipe, output, EvaluationOptions(max_new_tokens=2, batch_size=1), QUIET)
    grid = json.loads((output / "needles.json").read_text())
    assert set(grid) == {"base"}
    assert {kind: len(cells) for kind, cells in grid["base"].items()} == {"image": 6, "text": 6}
    assert sum(cell["rows"] for cells in grid["base"].values() for cell in cells) == 24
    assert (output / "needles.png").is_file()
    lines = [json.loads(line) for line in (output / "predictions.jsonl").open()]
    counted = {
        kind: sum(is_found(line["expected"][0], line["answers"]["base"]) for line in lines if f":{kind}:" in line["id"])
        for kind in ("text", "image")
    }
    assert {kind: sum(cell["found"] for cell in cells) for kind, cells in grid["base"].items()} == counted
    material = prepare_prompts(recipe, tmp_path / "store")
    assert all(plan.turns[-1].role == "user" for plan in material.plans), "the answer is not shown"
    # An evaluation without needles leaves no grid of an earlier one.
    evaluate(
        recipe_of(f"data.eval=[{{path: {DATA}/warmth-eval.jsonl}}]"), output, EvaluationOptions(max_new_tokens=1), QUIET
    )
    assert not (output / "needles.json").exists()


def test_lengths_that_can_not_be_are_refused(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    for options, words in (
        (NeedleOptions(lengths=(8192,)), r"8192 tokens are wanted, and data\.max_tokens is 4096"),
        (NeedleOptions(lengths=(40,)), "no room for any of the recipe's rows"),
    ):
        with pytest.raises(UserError, match=words):
            hide_needles(recipe_of(), tmp_path / "needles", options, QUIET)
        assert not (tmp_path / "needles").exists()
    assert {cell.length for cell in NeedleOptions().cells(5000)} == {1024, 2048, 4096}
