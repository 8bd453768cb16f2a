"""What the comment at the head of a shipped recipe says, and what the recipe takes of a card at most."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from upstream_layouts import LAYOUTS

from aria_finetune.planner.architecture import Architecture, VisionTower
from aria_finetune.planner.step import Batch
from aria_finetune.planning.setup import rows_of_update, setup_of
from aria_finetune.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TASKS = (*LAYOUTS, "long")
REAL = Architecture(28, 2560, 20, 20, 128, 64, 6, 1664, 2, 100_352, VisionTower(27, 1152, 4304, 16, 14, 980))
CARDS = {"24 GB": "4090", "80 GB": "h100"}
WITHOUT_PICTURES = ("code", "text")


@dataclass(frozen=True)
class Head:
    """The comment a recipe begins with: `commands` as they are typed, `said` by what stands before a colon."""

    commands: tuple[str, ...]
    said: dict[str, str]

    @classmethod
    def of(cls, name: str) -> Head:
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
        assert all(line.startswith("#") for line in text.splitlines())
        commands = re.findall(r"^#   ((?:aria-finetune|python|hf|curl|unzip|tar) .+?)(?:  +#.*)?$", text, re.MULTILINE)
        return cls(tuple(commands), dict(re.findall(r"^# (Metric|Published|24 GB|80 GB): (.+)$", text, re.MULTILINE)))

    def overrides(self, card: str) -> list[str]:
        """What is to be changed on a card of that size."""
        return [] if self.said[card] == "as it stands" else self.said[card].split()


def recipe_for(name: str, card: str) -> Recipe:
    """A recipe as its head would have it on a card."""
    return load_recipe(RECIPES / f"{name}.yaml", [*Head.of(name).overrides(card), "output.dir=runs/x"])


def peak_bytes(name: str, card: str) -> int:
    """What a recipe takes where its rows are as long as it allows."""
    recipe = recipe_for(name, card)
    return setup_of(recipe, REAL, "cuda", pictures=name not in WITHOUT_PICTURES).peak(fullest(recipe)).bytes


def fullest(recipe: Recipe) -> Batch:
    tokens = recipe.train.per_device_train_batch_size * recipe.data.max_tokens
    side, shown = (490, 130) if recipe.data.image_size == 490 else (980, 258)
    waiting = rows_of_update(recipe) * (recipe.data.max_tokens // shown)
    return Batch(1, tokens, tokens, {side: tokens // shown}, waiting={side: waiting})
