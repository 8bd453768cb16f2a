"""Who answers: the base, the same with an adapter, with every picture greyed out, and a merged checkpoint after them."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from aria_finetune.adapter.files import open_adapter
from aria_finetune.evaluation.scoring import BASE
from aria_finetune.generation import generate_answers
from aria_finetune.material import Material, build_collator, load_base
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.lora import load_adapter
from aria_finetune.model.rope import check_same_theta
from aria_finetune.recipe import Recipe
from aria_finetune.sources import build_rope

# Whatever the recipe says for training: a score over fewer rows would not be the same score.
VIEWING: dict[str, Any] = {"generation": True, "on_bad_media": "fail"}


class Wanted(Protocol):
    """Which models answer, and how far."""

    @property
    def adapter(self) -> Path | None: ...  # noqa: D102
    @property
    def merged(self) -> Path | None: ...  # noqa: D102
    @property
    def blank_images(self) -> bool: ...  # noqa: D102
    @property
    def max_new_tokens(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102


def check_models(recipe: Recipe, material: Material, adapter: Path | None, merged: Path | None) -> None:
    """Refuse what can't answer before anything does.

    Raises:
        UserError: the adapter was trained with other positions than the recipe's base has, or `merged` is no checkpoint.
    """
    if adapter is not None:
        rope = build_rope(recipe, material.checkpoint)
        check_same_theta(open_adapter(adapter).folder, rope.theta)
    if merged is not None:
        open_checkpoint(str(merged))


def answer_rows(recipe: Recipe, material: Material, wanted: Wanted, console: Console) -> dict[str, list[str]]:
    """What each says to every row, by who says it. One base is in memory at a time."""
    console.print(f"answering {len(material.plans):,} rows", highlight=False)
    said = _with_base(recipe, material, wanted)
    if wanted.merged is not None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        said["merged"] = _with_merged(recipe, material, wanted, wanted.merged)
    return said


def _with_base(recipe: Recipe, material: Material, wanted: Wanted) -> dict[str, list[str]]:
    base = load_base(recipe).model.eval()
    settings = _settings(base, material, wanted)
    collator = build_collator(recipe, material, **VIEWING)
    said = {BASE: generate_answers(base, collator, **settings)}
    if wanted.adapter is not None:
        model = load_adapter(base, str(wanted.adapter)).eval()
        said["adapter"] = generate_answers(model, collator, **settings)
        if wanted.blank_images:
            blind = build_collator(recipe, material, blank_images=True, **VIEWING)
            said["adapter_blank"] = generate_answers(model, blind, **settings)
    return said


def _with_merged(recipe: Recipe, material: Material, wanted: Wanted, merged: Path) -> list[str]:
    """Answers of a merged checkpoint, held as the recipe holds its base."""
    place = recipe.model.model_copy(update={"path": str(merged), "revision": None})
    model = load_base(recipe.model_copy(update={"model": place})).model.eval()
    return generate_answers(model, build_collator(recipe, material, **VIEWING), **_settings(model, material, wanted))


def _settings(base: Any, material: Material, wanted: Wanted) -> dict[str, Any]:
    return {
        "base": base,
        "chat": material.chat,
        "max_new_tokens": wanted.max_new_tokens,
        "batch_size": wanted.batch_size,
    }
