"""Layers as a recipe names them: which they are, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from aria_finetune.errors import UserError
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.recipe.layers import resolve_layers


def load(folder: Path, written: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(f"model: {{path: tiny}}\ndata: {{train: rows.jsonl}}\nlora:\n  layers: {written}\n")
    return load_recipe(file)


@pytest.mark.parametrize(
    ("written", "numbers"),
    [
        ("null", None),
        ("5", (5,)),
        ("20-22", (20, 21, 22)),
        ("[0, 5, 20-27]", (0, 5, 20, 21, 22, 23, 24, 25, 26, 27)),
        ('[0, 5, "20 - 22"]', (0, 5, 20, 21, 22)),
        ("[-1, -28]", (0, 27)),
        ("[9, 3-4, 4-6]", (3, 4, 5, 6, 9)),
        ("[7-7]", (7,)),
    ],
)
def test_which_layers_they_are(tmp_path: Path, written: str, numbers: tuple[int, ...] | None) -> None:
    recipe = load(tmp_path, written)
    assert recipe.adapted_layers(28) == numbers
    assert Recipe.from_data(recipe.dump(), recipe.file).adapted_layers(28) == numbers


@pytest.mark.parametrize(
    ("written", "key", "said"),
    [
        ("[]", "lora.layers", "needs at least one entry"),
        ("[1, 1]", "lora.layers", "names the same thing twice"),
        ("[0, last]", "lora.layers.1", "must be the number of a layer, or a range of them such as 20-27"),
        ("[true]", "lora.layers.0", "must be the number of a layer"),
        ("[1.0]", "lora.layers.0", "must be the number of a layer"),
        ("[1-2-3]", "lora.layers.0", "must be the number of a layer"),
        ("[-3--1]", "lora.layers.0", "must be the number of a layer"),
        ("[27-20]", "lora.layers.0", "ends before it begins"),
        ("{from: 1}", "lora.layers", "must be a list"),
    ],
)
def test_what_is_no_layer(tmp_path: Path, written: str, key: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, written)
    assert f"recipe.yaml:4: {key}: {said}" in str(caught.value)


@pytest.mark.parametrize(("written", "named"), [("28", "28"), ("[0, -29]", "-29"), ("[20-28]", "20-28")])
def test_layers_that_the_model_does_not_have(tmp_path: Path, written: str, named: str) -> None:
    with pytest.raises(UserError, match=f"there is no layer {named} in a decoder of 28 layers") as caught:
        load(tmp_path, written).adapted_layers(28)
    assert str(caught.value.where).endswith("recipe.yaml: lora.layers")
    assert "from 0 to 27" in str(caught.value.fix)


def test_without_a_recipe() -> None:
    assert resolve_layers([1, "0-1"], 2) == (0, 1)
    with pytest.raises(LookupError):
        resolve_layers(["1-2"], 2)
