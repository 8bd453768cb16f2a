"""Who answers: the base, the same with an adapter, with every picture greyed out, and a merged checkpoint after them."""

from __future__ import annotations

import copy
import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from aria_finetune import __version__
from aria_finetune.adapter.files import adapter_folder, open_adapter
from aria_finetune.evaluation.journal import Journal, fingerprint
from aria_finetune.evaluation.scoring import BASE
from aria_finetune.generation import Reply, generate_answers
from aria_finetune.material import Material, build_collator, load_base
from aria_finetune.model.hub_layout import checkpoint_folder, open_checkpoint
from aria_finetune.model.lora import load_adapter
from aria_finetune.model.rope import check_same_theta
from aria_finetune.recipe import Recipe
from aria_finetune.sources import build_rope

# Whatever the recipe says for training: a score over fewer rows would not be the same score.
VIEWING: dict[str, Any] = {"generation": True, "on_bad_media": "fail"}

BATCHES_KEPT = 4
"""After so many batches answers are on disk."""


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


def open_journal(recipe: Recipe, material: Material, wanted: Wanted, output: Path) -> Journal:
    """The answers that an evaluation of the same rows and models, cut short before, has left."""
    rows = hashlib.sha256()
    for plan in material.plans:
        rows.update(repr((plan.record.id, plan.turns, plan.sights)).encode("utf-8", "surrogatepass"))
    recipe_says = recipe.model_dump(mode="json", exclude={"train", "output", "file"})
    places = [  # where their files are: of a folder only those that lie in it itself are looked at
        material.checkpoint.folder,
        wanted.adapter and adapter_folder(wanted.adapter),
        wanted.merged and checkpoint_folder(str(wanted.merged)),
    ]
    return Journal(output, fingerprint(__version__, recipe_says, places, rows.hexdigest(), wanted.max_new_tokens))


def answer_rows(
    recipe: Recipe, material: Material, wanted: Wanted, journal: Journal, console: Console
) -> dict[str, list[Reply]]:
    """What each says to every row, by who says it. One base is in memory at a time."""
    known = f", {journal.count:,} answers are known from before" if journal.count else ""
    console.print(f"answering {len(material.plans):,} rows{known}", highlight=False)
    talk = Talk(recipe, material, wanted, journal, console)
    with_base = [BASE]
    if wanted.adapter is not None:
        with_base += ["adapter", "adapter_blank"] if wanted.blank_images else ["adapter"]
    talk.with_base(with_base)
    if wanted.merged is None:
        return talk.said(with_base)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    talk.with_merged(wanted.merged)
    return talk.said([*with_base, "merged"])


@dataclass(frozen=True)
class Talk:
    """Asks models the rows that they have not answered yet, a few batches at a time, and keeps every answer at once."""

    recipe: Recipe
    material: Material
    wanted: Wanted
    journal: Journal
    console: Console

    def said(self, whos: Sequence[str]) -> dict[str, list[Reply]]:
        """All answers in the order of the rows."""
        return {who: [self.journal.of(who)[row] for row in range(len(self.material.plans))] for who in whos}

    def with_base(self, whos: Sequence[str]) -> None:
        """Ask the base, and with an adapter around it those of `whos` that have one."""
        if not any(map(self._left, whos)):
            return
        base = load_base(self.recipe).model.eval()
        self._ask(BASE, base, base)
        if self.wanted.adapter is not None:
            model = load_adapter(base, str(self.wanted.adapter)).eval()
            for who in whos[1:]:
                self._ask(who, model, base, blank_images=who == "adapter_blank")

    def with_merged(self, merged: Path) -> None:
        """Ask a merged checkpoint, held as the recipe holds its base."""
        if not self._left("merged"):
            return
        place = self.recipe.model.model_copy(update={"path": str(merged), "revision": None})
        model = load_base(self.recipe.model_copy(update={"model": place})).model.eval()
        self._ask("merged", model, model)

    def _left(self, who: str) -> list[int]:
        """Rows without an answer yet, the shortest first, as they are put into batches."""
        plans, known = self.material.plans, self.journal.of(who)
        return sorted((row for row in range(len(plans)) if row not in known), key=lambda row: plans[row].tokens)

    def _ask(self, who: str, model: Any, base: Any, **changes: Any) -> None:
        left, plans = self._left(who), self.material.plans
        collator = build_collator(self.recipe, self.material, **VIEWING, **changes)
        settings = {"base": base, "chat": self.material.chat, "max_new_tokens": self.wanted.max_new_tokens}
        at_a_time, told = self.wanted.batch_size * BATCHES_KEPT, 0
        for first in range(0, len(left), at_a_time):
            rows = left[first : first + at_a_time]
            some = copy.copy(collator)  # with the same process that decodes
            some.plans = [plans[row] for row in rows]
            answers = generate_answers(model, some, batch_size=self.wanted.batch_size, **settings)
            self.journal.add(who, zip(rows, answers, strict=True))
            tenth = 10 * len(self.journal.of(who)) // len(plans)
            if tenth > told and len(left) > at_a_time:
                self.console.print(f"  {who}: {len(self.journal.of(who)):,} of {len(plans):,}", highlight=False)
            told = tenth
