"""What a recipe names, opened and read: checkpoint, processor, rows, device, base model.

Training and evaluation both start here. Translates recipe keys into the plain values that everything below takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AriaProcessor

from aria_finetune.data.begun import BegunRows
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.collation import Collator
from aria_finetune.data.dataset import RowSet, as_prompts
from aria_finetune.data.pictures import Showing
from aria_finetune.data.rows import RowPlan
from aria_finetune.errors import UserError
from aria_finetune.media.images import ImageLimits
from aria_finetune.model.absent import Part
from aria_finetune.model.holding import Holding
from aria_finetune.model.hub_layout import HubCheckpoint, open_checkpoint, open_settings
from aria_finetune.model.loading import LoadedModel, Watch, load_model, load_processor
from aria_finetune.model.settings import pad_id
from aria_finetune.recipe import Recipe
from aria_finetune.sources import RowReader, build_rope, build_viewing

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Material:
    """What a run reads before any weight: checkpoint, processor, rows."""

    checkpoint: HubCheckpoint
    processor: AriaProcessor
    chat: ChatTokenizer
    train_rows: RowSet
    eval_rows: RowSet

    @property
    def plans(self) -> list[RowPlan]:
        """All rows: those of training first, those of evaluation behind them."""
        return [*self.train_rows.plans, *self.eval_rows.plans]

    @property
    def has_pictures(self) -> bool:
        """Whether any row shows one."""
        return self.train_rows.has_pictures or self.eval_rows.has_pictures


def prepare(
    recipe: Recipe,
    media_store: Path,
    *,
    decode_media: bool = False,
    begun: BegunRows | None = None,
    any_rejects: bool = False,
) -> Material:
    """Open the checkpoint, read its processor, and read and plan all rows for training.

    `decode_media` decodes every picture of raw sources now, instead of only reading its header. `begun` are the rows
    of a run that goes on. With `any_rejects` more records may be rejected than `data.max_rejects` says.
    """
    material, reader = _open(recipe, media_store, decode_media=decode_media, begun=begun, any_rejects=any_rejects)
    train_rows, eval_rows = reader.training_and_evaluation()
    return replace(material, train_rows=train_rows, eval_rows=eval_rows)


def prepare_prompts(recipe: Recipe, media_store: Path) -> Material:
    """The same with the evaluation rows alone, planned as prompts for answers to be generated.

    Raises:
        UserError: the recipe names nothing to evaluate on.
    """
    if not recipe.data.has_eval:
        raise UserError(
            "the recipe names no evaluation data", where=str(recipe.file), fix="add data.eval, or data.eval_fraction"
        )
    material, reader = _open(recipe, media_store)
    if recipe.data.eval:
        return replace(material, eval_rows=reader.read(recipe.data.eval, generation=True))
    # Rows are chosen as training chose them, and only then planned as prompts, so that none was trained on.
    _, held = reader.training_and_evaluation()
    return replace(material, eval_rows=as_prompts(held, reader.viewing, material.chat))


def _open(
    recipe: Recipe,
    media_store: Path,
    *,
    decode_media: bool = False,
    begun: BegunRows | None = None,
    any_rejects: bool = False,
) -> tuple[Material, RowReader]:
    """Material without rows, and what reads them."""
    checkpoint = open_checkpoint(recipe.model.path, recipe.model.revision)
    processor = load_processor(checkpoint)
    chat = ChatTokenizer(processor.tokenizer)
    viewing = build_viewing(recipe, checkpoint)
    reader = RowReader(recipe, viewing, chat, media_store, decode_media, begun, any_rejects)
    return Material(checkpoint, processor, chat, RowSet(), RowSet()), reader


def build_showing(recipe: Recipe) -> Showing:
    """How pictures become tiles."""
    return Showing(recipe.data.split_images, ImageLimits(max_pixels=recipe.data.max_pixels))


def build_collator(recipe: Recipe, material: Material, **changes: Any) -> Collator:
    """The collator of a recipe; `changes` go to `Collator`."""
    settings = {
        "loss_on": recipe.data.loss_on,
        "showing": build_showing(recipe),
        "on_bad_media": recipe.data.on_bad_media,
        "media_timeout": recipe.data.media_timeout,
    }
    return Collator(material.plans, material.chat, pad_id(material.checkpoint), **(settings | changes))


def choose_device(recipe: Recipe) -> str:
    """`cuda` or `cpu`.

    Raises:
        UserError: the recipe asks for CUDA and there is none.
    """
    return device_named(recipe.model.device, "model.device")


def device_named(name: str, key: str = "--device") -> str:
    """`cuda` or `cpu` for `auto`, `cuda` or `cpu`.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(f"{key} is cuda, but torch sees no GPU", fix="aria-finetune doctor says what is missing")
    return "cuda" if available and name != "cpu" else "cpu"


def load_base(recipe: Recipe, watch: Watch | None = None, *, without: Part | None = None) -> LoadedModel:
    """The frozen base model as the recipe wants it, with the bytes of its parts; `watch` is told of its layers."""
    device = choose_device(recipe)
    implementation = recipe.experts_implementation(device)
    wanted = Holding(
        lm_head=recipe.model.lm_head,
        embedding=recipe.model.embedding,
        experts=recipe.moe.experts_on,
        experts_at_a_time=recipe.moe.experts_at_a_time if implementation == "grouped" else None,
    )
    return load_model(
        recipe.model.path,
        revision=recipe.model.revision,
        rope=build_rope(recipe, open_settings(recipe.model.path, recipe.model.revision)),
        experts=recipe.model.experts,
        dtype=DTYPES[recipe.model.compute_dtype],
        device=device,
        implementation=implementation,
        holding=None if without == "decoder" else wanted,
        without=without,
        watch=watch,
    )
