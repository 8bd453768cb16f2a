"""The recipes that come with the package: listed, shown, or copied with the data they name.

Knows only files; a copied recipe is the user's own.
"""

from __future__ import annotations

import shutil
from difflib import get_close_matches
from pathlib import Path

from aria_finetune.errors import UserError

FOLDER = Path(__file__).parent / "recipes"


def shipped() -> dict[str, Path]:
    """Recipe files by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def describe_recipes() -> str:
    """One line a recipe: its name and the first line of its comment."""
    recipes = shipped()
    width = max(map(len, recipes))
    lines = [f"{name:{width}}  {_headline(path)}" for name, path in recipes.items()]
    return "\n".join(
        [*lines, "", "Show one: aria-finetune recipes NAME; put it here: aria-finetune recipes NAME --copy"]
    )


def show_recipe(name: str) -> str:
    """The text of a recipe.

    Raises:
        UserError: there is no such recipe.
    """
    return _find(name).read_text(encoding="utf-8")


def copy_recipe(name: str, folder: Path) -> Path:
    """Copy a recipe, and its folder below `data/` if it has one, into `folder`; returns the recipe's new path.

    Raises:
        UserError: there is no such recipe, or something of that name is there already.
    """
    recipe = _find(name)
    data = FOLDER / "data" / name
    targets = [folder / f"{name}.yaml", *([folder / "data" / name] if data.is_dir() else [])]
    for target in targets:
        if target.exists():
            raise UserError("this is here already", where=str(target), fix="work in another folder, or move it away")
    shutil.copyfile(recipe, targets[0])
    if data.is_dir():
        shutil.copytree(data, targets[1])
    return targets[0]


def _find(name: str) -> Path:
    recipes = shipped()
    if name not in recipes:
        near = get_close_matches(name, recipes, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no recipe {name!r}", fix=f"{hint}the recipes are {', '.join(recipes)}")
    return recipes[name]


def _headline(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()
