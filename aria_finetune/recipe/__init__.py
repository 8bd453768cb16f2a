"""Reading a recipe: the file, the overrides of the command line, and every problem of both at once.

    recipe = load_recipe(Path("recipes/tiny.yaml"), ["train.max_steps=20"])

Does not know what any key does; the keys stand in `schema`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aria_finetune.errors import UserError
from aria_finetune.recipe.overrides import apply_override, parse_override
from aria_finetune.recipe.problems import Problem, conflict_problems, schema_problems
from aria_finetune.recipe.schema import Recipe, as_sources
from aria_finetune.recipe.strict_yaml import Document, KeyPath, read_yaml

__all__ = ["Recipe", "changed", "load_recipe", "resolve_data_path"]


def changed(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The same recipe with `KEY=VALUE` overrides laid over it; what keys say together is not checked again."""
    data = copy.deepcopy(recipe.model_dump())
    for word in overrides:
        apply_override(data, *parse_override(word))
    return Recipe.from_data(data, recipe.file)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay `KEY=VALUE` overrides over it, later ones over earlier ones.

    Raises:
        UserError: the file is missing or is not strict YAML; or one message with a line for every key that is
            unknown, missing, of the wrong type, out of range, or at odds with another.
    """
    if not (_exists(path) and path.is_file()):
        raise _no_such_recipe(path)
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        found = "is empty" if document.data is None else "holds no keys"
        raise UserError(f"the recipe {found}", where=str(path), fix="write sections such as `model:` and `data:`")
    data, overridden, complaints = _override(document.data, overrides)
    recipe, problems = _validate(data, path)
    lines = _report(problems, document, path, overridden) + complaints
    if lines:
        raise UserError("\n".join(lines))
    return recipe


def resolve_data_path(recipe_file: Path, text: str) -> Path:
    """The absolute path of data that a recipe names, looked for beside the recipe and in the current folder.

    Raises:
        UserError: there is no such file or folder in either place, or there are two different ones.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"no home folder is known for {text!r}", where=str(recipe_file)) from error
    places = list(dict.fromkeys((recipe_file.absolute().parent / path, Path.cwd() / path)))
    found = [place for place in places if _exists(place)]
    if not found:
        looked = " and as ".join(str(place) for place in places)
        raise UserError(
            f"the data {text!r} was not found; looked for it as {looked}", where=str(recipe_file), fix=_nearest(places)
        )
    if len(found) == 2 and not found[0].samefile(found[1]):
        raise UserError(
            f"the data {text!r} could be {found[0]} or {found[1]}",
            where=str(recipe_file),
            fix="write the whole path of the one that is meant",
        )
    return found[0]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # Too long a name, no permission, or a NUL: in no case a file that could be read.
        return False


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):
        return []


def _nearest(places: Iterable[Path]) -> str | None:
    for place in places:
        close = get_close_matches(place.name, _names(place.parent), n=1)
        if close:
            return f"did you mean {place.parent / close[0]}?"
    return None


def _no_such_recipe(path: Path) -> UserError:
    is_folder = _exists(path) and path.is_dir()
    folder = path if is_folder else path.parent
    recipes = [name for name in _names(folder) if name.endswith(".yaml")]
    if not recipes:
        return UserError("there is no such recipe, nor any *.yaml in its folder", where=str(path))
    close = get_close_matches(path.name, recipes, n=1)
    meant = f"did you mean {folder / close[0]}? " if close else ""
    fix = f"{meant}recipes in {folder}: {', '.join(recipes)}"
    return UserError("is a folder" if is_folder else "there is no such recipe", where=str(path), fix=fix)


def _with_lists_of_sources(data: dict[str, Any]) -> dict[str, Any]:
    """A copy in which `data.train` and `data.eval` are lists, so that overrides can count on positions."""
    section = data.get("data")
    if not isinstance(section, dict):
        return data
    lists = {key: list(as_sources(section[key])) for key in ("train", "eval") if key in section}
    return {**data, "data": {**section, **lists}}


def _override(data: dict[str, Any], words: Sequence[str]) -> tuple[dict[str, Any], set[KeyPath], list[str]]:
    """The data with the overrides applied, the paths that were set, and a line for each override that can't be."""
    data = _with_lists_of_sources(data)
    overridden: set[KeyPath] = set()
    complaints: list[str] = []
    for word in words:
        try:
            path, value = parse_override(word)
            apply_override(data, path, value)
        except UserError as error:
            complaints.append(str(error))
        else:
            overridden.add(path)
            data = _with_lists_of_sources(data)
    return data, overridden, complaints


def _validate(data: dict[str, Any], path: Path) -> tuple[Recipe, list[Problem]]:
    """The recipe and its problems; where there are any, the recipe has defaults in the place of broken keys."""
    try:
        recipe = Recipe.from_data(data, path)
    except ValidationError as error:
        problems = schema_problems(error)
        broken = {problem.path[:2] for problem in problems}
        recipe = Recipe.from_data(_mended(data, broken), path)
        return recipe, [*problems, *conflict_problems(recipe, broken)]
    return recipe, list(conflict_problems(recipe, broken=set()))


def _mended(data: dict[str, Any], broken: set[KeyPath]) -> dict[str, Any]:
    """A copy without the broken keys, so that the rest can be checked against each other in the same run."""
    mended = copy.deepcopy(data)
    for section, *keys in broken:
        if keys:
            (mended.get(str(section)) or {}).pop(keys[0], None)
        else:
            mended.pop(str(section), None)
    for section, key, value in (("model", "path", "tiny"), ("data", "train", ["any"])):
        mended[section] = {key: value, **(mended.get(section) or {})}
    return mended


def _report(problems: list[Problem], document: Document, path: Path, overridden: set[KeyPath]) -> list[str]:
    """A line for each problem, in the order of the file; overridden keys have no line and come last."""
    written: list[tuple[int, str]] = []
    from_overrides: list[str] = []
    for problem in problems:
        if _is_overridden(problem.path, document, overridden):
            from_overrides.append(f"(override) {problem.text}")
        else:
            line = document.line_of(problem.path)
            written.append((line, f"{path}:{line}: {problem.text}"))
    return [text for _, text in sorted(written, key=lambda pair: pair[0])] + from_overrides


def _is_overridden(path: KeyPath, document: Document, overridden: set[KeyPath]) -> bool:
    """Whether what stands at `path` came from an override: set itself, or made on the way to a key below it."""
    made = path not in document.lines
    return any(path[: len(key)] == key or (made and key[: len(path)] == path) for key in overridden)
