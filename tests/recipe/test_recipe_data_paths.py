"""Where data that a recipe names is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from aria_finetune.errors import UserError
from aria_finetune.recipe import resolve_data_path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of a recipe and another that is the current one."""
    beside, current = tmp_path / "recipes", tmp_path / "work"
    beside.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    return beside, current


def test_data_beside_the_recipe(places: tuple[Path, Path]) -> None:
    beside, _ = places
    (beside / "rows.jsonl").touch()
    assert resolve_data_path(beside / "recipe.yaml", "rows.jsonl") == beside / "rows.jsonl"
    assert resolve_data_path(Path("../recipes/recipe.yaml"), "rows.jsonl").samefile(beside / "rows.jsonl")


def test_data_in_the_current_folder(places: tuple[Path, Path]) -> None:
    beside, current = places
    (current / "rows").mkdir()
    found = resolve_data_path(beside / "recipe.yaml", "rows")
    assert found == current / "rows"
    assert found.is_absolute()


def test_data_in_both_places_is_ambiguous(places: tuple[Path, Path]) -> None:
    beside, current = places
    (beside / "rows.jsonl").touch()
    (current / "rows.jsonl").touch()
    with pytest.raises(UserError) as caught:
        resolve_data_path(beside / "recipe.yaml", "rows.jsonl")
    assert str(beside / "rows.jsonl") in str(caught.value)
    assert str(current / "rows.jsonl") in str(caught.value)


def test_the_same_data_in_both_places(places: tuple[Path, Path]) -> None:
    beside, current = places
    (beside / "rows.jsonl").touch()
    (current / "rows.jsonl").symlink_to(beside / "rows.jsonl")
    assert resolve_data_path(beside / "recipe.yaml", "rows.jsonl") == beside / "rows.jsonl"


def test_missing_data_names_both_places(places: tuple[Path, Path]) -> None:
    beside, current = places
    (current / "rows.jsonl").touch()
    with pytest.raises(UserError) as caught:
        resolve_data_path(beside / "recipe.yaml", "row.jsonl")
    message = str(caught.value)
    assert str(beside / "row.jsonl") in message
    assert str(current / "row.jsonl") in message
    assert message.endswith(f"fix: did you mean {current / 'rows.jsonl'}?")


@pytest.mark.parametrize("text", ["/nowhere/rows.jsonl", "x" * 5000, "a\0b", "~nobody_of_that_name/rows"])
def test_data_in_an_odd_place(places: tuple[Path, Path], text: str) -> None:
    with pytest.raises(UserError):
        resolve_data_path(places[0] / "recipe.yaml", text)


def test_data_in_the_home_folder(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    beside, current = places
    monkeypatch.setenv("HOME", str(current))
    (current / "rows.jsonl").touch()
    assert resolve_data_path(beside / "recipe.yaml", "~/rows.jsonl") == current / "rows.jsonl"
