"""`KEY=VALUE` words of the command line, laid over the values of a recipe. Knows paths, not what a key means.

For instance `train.max_steps=20`, `lora.targets=[router]`, `data.train.0.weight=2`.
"""

from __future__ import annotations

from typing import Any

from aria_finetune.errors import UserError
from aria_finetune.recipe.strict_yaml import KeyPath, parse_yaml


def parse_override(word: str) -> tuple[KeyPath, Any]:
    """Split `a.b.0.c=VALUE` and read VALUE by the rules of a recipe's YAML.

    Raises:
        UserError: naming the override.
    """
    key, equals, text = word.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError("an override is written KEY=VALUE, as in train.max_steps=20", where=f"(override) {word}")
    try:
        value = parse_yaml(text, word).data
    except UserError as error:
        fix = "quote text that YAML would read otherwise, for YAML and for the shell: 'model.path=\"a: b\"'"
        raise UserError(error.message, where=f"(override) {word}", fix=fix) from error
    return tuple(_position(part) for part in parts), value


def apply_override(data: dict[str, Any], path: KeyPath, value: object) -> None:
    """Set `path` in `data`, in place; mappings on the way are made where they are missing.

    Raises:
        UserError: the path leads through a plain value or past the end of a list.
    """
    place: Any = data
    for depth, key in enumerate(path[:-1]):
        _check_step(place, path[: depth + 1])
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[key]
    _check_step(place, path)
    place[path[-1]] = value


def _position(part: str) -> str | int:
    return int(part) if part.isascii() and part.isdecimal() and len(part) <= 9 else part


def _check_step(place: object, path: KeyPath) -> None:
    """Whether the last key of `path` can be looked up in, or set on, what stands before it."""
    key, before = path[-1], ".".join(str(part) for part in path[:-1])
    where = f"(override) {'.'.join(str(part) for part in path)}"
    if isinstance(place, list):
        if not isinstance(key, int) or key >= len(place):
            raise UserError(
                f"{before} is a list of {len(place)}, and {key!r} is no position in it",
                where=where,
                fix=f"write a position from 0, as in {before}.0, or the whole list: {before}=[...]",
            )
    elif not isinstance(place, dict):
        raise UserError(f"{before} is a single value and has no keys", where=where, fix=f"write {before}=VALUE")
    elif isinstance(key, int):
        raise UserError(f"{before or 'the recipe'} is no list, so it has no position {key}", where=where)
