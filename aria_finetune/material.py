"""What a recipe names, opened and read: checkpoint, processor, rows, device, base model.

Training and evaluation both start here. Translates recipe keys into the plain values that everything below takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AriaProcessor

from aria_finetune.data.begun import BegunRows
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.collation import Collator
from aria_finetune.data.dataset import DataSource, RowSet, as_prompts, hold_out, load_rows
from aria_finetune.data.pictures import Showing
from aria_finetune.data.rows import RowPlan, Viewing
from aria_finetune.errors import UserError
from aria_finetune.media.images import ImageLimits
from aria_finetune.model.absent import Part
from aria_finetune.model.experts import LEAN
from aria_finetune.model.hub_layout import HubCheckpoint, open_checkpoint
from aria_finetune.model.loading import LoadedModel, Watch, load_model, load_processor, pad_id, vision_tokens
from aria_finetune.recipe import Recipe, resolve_data_path
from aria_finetune.recipe.schema import SourceSection

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
        return any(plan.sights for plan in self.plans)


def prepare(
    recipe: Recipe, media_store: Path, *, decode_media: bool = False, begun: BegunRows | None = None
) -> Material:
    """Open the checkpoint, read its processor, and read and plan all rows for training.

    `decode_media` decodes every picture of raw sources now, instead of only reading its header. `begun` are the rows
    of a run that goes on.
    """
    material, read = _open(recipe, media_store, decode_media=decode_media, begun=begun)
    train_rows = read(recipe.data.train)
    eval_rows = read(recipe.data.eval) if recipe.data.eval else RowSet()
    if recipe.data.eval_fraction is not None:
        train_rows, eval_rows = hold_out(train_rows, recipe.data.eval_fraction, recipe.train.seed)
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
    material, read = _open(recipe, media_store)
    if recipe.data.eval:
        return replace(material, eval_rows=read(recipe.data.eval, generation=True))
    # Rows are chosen as training chose them, and only then planned as prompts, so that none was trained on.
    fraction = recipe.data.eval_fraction or 0.0
    _, held = hold_out(read(recipe.data.train), fraction, recipe.train.seed)
    return replace(material, eval_rows=as_prompts(held, build_viewing(recipe, material.checkpoint), material.chat))


def _open(
    recipe: Recipe, media_store: Path, *, decode_media: bool = False, begun: BegunRows | None = None
) -> tuple[Material, Callable[..., RowSet]]:
    """Material without rows, and the function that reads rows of some sources."""
    checkpoint = open_checkpoint(recipe.model.path, recipe.model.revision)
    processor = load_processor(checkpoint)
    chat = ChatTokenizer(processor.tokenizer)
    viewing = build_viewing(recipe, checkpoint)

    def read(sections: tuple[SourceSection, ...], *, generation: bool = False) -> RowSet:
        return load_rows(
            [build_source(recipe, section) for section in sections],
            viewing,
            chat,
            media_store=media_store,
            max_rejects=recipe.data.max_rejects,
            max_pixels=recipe.data.max_pixels,
            generation=generation,
            decode_media=decode_media,
            begun=begun,
            media_timeout=recipe.data.media_timeout,
        )

    return Material(checkpoint, processor, chat, RowSet(), RowSet()), read


def build_viewing(recipe: Recipe, checkpoint: HubCheckpoint) -> Viewing:
    """How rows are shown, from the recipe's `data` and the checkpoint's projector."""
    data = recipe.data
    return Viewing(
        image_size=data.image_size,
        split_images=data.split_images,
        max_tokens=data.max_tokens,
        too_long=data.too_long,
        loss_on=data.loss_on,
        num_frames=data.num_frames,
        timestamps=data.timestamps,
        vision_tokens=vision_tokens(checkpoint),
    )


def build_source(recipe: Recipe, section: SourceSection) -> DataSource:
    """One entry of `data.train` or `data.eval` with its paths found."""
    return DataSource(
        path=resolve_data_path(recipe.file, section.path),
        format=section.format,
        media_roots=tuple(resolve_data_path(recipe.file, root) for root in section.media_root),
        weight=section.weight,
        companions=tuple(resolve_data_path(recipe.file, file) for file in section.companions),
        columns=section.columns,
        answers=section.answers,
        take=section.take,
        encoding=section.encoding,
        converter=resolve_data_path(recipe.file, section.converter) if section.converter else None,
    )


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
    automatic = LEAN if device == "cpu" else "grouped_mm"
    return load_model(
        recipe.model.path,
        revision=recipe.model.revision,
        experts=recipe.model.experts,
        dtype=DTYPES[recipe.model.compute_dtype],
        device=device,
        implementation=automatic if recipe.moe.implementation == "auto" else recipe.moe.implementation,
        without=without,
        watch=watch,
    )
