"""The rows that a recipe names: its sources found, read, planned, and some of them held out.

Knows recipes and a tokenizer; neither weights nor the processor of pictures, so that a plan is made without either.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from aria_finetune.data.begun import BegunRows
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.dataset import DataSource, RowSet, hold_out, load_rows
from aria_finetune.data.packing import MicroBatches, Packing
from aria_finetune.data.rows import Viewing
from aria_finetune.errors import UserError
from aria_finetune.media.inspection import Inspector
from aria_finetune.model.hub_layout import CheckpointSettings
from aria_finetune.model.rope import Rope, shown
from aria_finetune.model.settings import vision_tokens
from aria_finetune.recipe import Recipe, resolve_data_path
from aria_finetune.recipe.schema import SourceSection


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of a recipe's sources.

    `decode_media` decodes every picture of raw sources instead of only reading its header. `begun` are the rows of a run
    that goes on. With `any_rejects` more records may be rejected than `data.max_rejects` says.
    """

    recipe: Recipe
    viewing: Viewing
    chat: ChatTokenizer
    media_store: Path
    decode_media: bool = False
    begun: BegunRows | None = None
    any_rejects: bool = False

    def read(self, sections: tuple[SourceSection, ...], *, generation: bool = False) -> RowSet:
        """The rows of some sources, planned; with `generation` as prompts."""
        with self._looking() as inspector:
            return self._read(sections, inspector, generation=generation)

    def training_and_evaluation(self) -> tuple[RowSet, RowSet]:
        """The rows to train on, and those to evaluate on while training."""
        data = self.recipe.data
        with self._looking() as inspector:
            rows = self._read(data.train, inspector)
            if data.eval_fraction is not None:
                return hold_out(rows, data.eval_fraction, self.recipe.train.seed)
            return rows, self._read(data.eval, inspector) if data.eval else RowSet()

    def _looking(self) -> closing[Inspector]:
        """What looks into media, of all sources that are read with it: a clip that is in two of them is read once."""
        return closing(Inspector(self.recipe.data.media_timeout))

    def _read(self, sections: tuple[SourceSection, ...], inspector: Inspector, *, generation: bool = False) -> RowSet:
        data = self.recipe.data
        return load_rows(
            [build_source(self.recipe, section) for section in sections],
            self.viewing,
            self.chat,
            media_store=self.media_store,
            max_rejects=None if self.any_rejects else data.max_rejects,
            max_pixels=data.max_pixels,
            generation=generation,
            decode_media=self.decode_media,
            begun=self.begun,
            inspector=inspector,
        )


def build_rope(recipe: Recipe, checkpoint: CheckpointSettings) -> Rope:
    """How places are told apart: as config.json says, or with the recipe's base and for its longest rows.

    Raises:
        UserError: rows may be longer than the model is made for.
    """
    tokens = recipe.data.max_tokens
    own = Rope.of(checkpoint.config)
    rope = own.widened(recipe.model.rope_theta, tokens)
    if tokens > rope.positions:
        raise UserError(
            f"rows may have {tokens} tokens, and the model is made for {rope.positions} (RoPE base {shown(rope.theta)})",
            where=f"{recipe.file}: data.max_tokens",
            fix=f"set data.max_tokens={rope.positions}, or a model.rope_theta above {shown(own.theta)}; Aria's authors went "
            "from 8,192 tokens to 65,536 by raising 100,000 to 5,000,000, and training on long rows",
        )
    return rope


def build_viewing(recipe: Recipe, checkpoint: CheckpointSettings) -> Viewing:
    """How rows are shown, from the recipe's `data` and the checkpoint's projector.

    Raises:
        UserError: they may be longer than the model is made for.
    """
    data = recipe.data
    build_rope(recipe, checkpoint)
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


def build_batches(recipe: Recipe, rows: RowSet) -> MicroBatches:
    """The micro-batches that a recipe trains on."""
    train, size = recipe.train, recipe.train.per_device_train_batch_size
    packing = Packing([plan.tokens for plan in rows.plans], size * recipe.data.max_tokens)
    return MicroBatches(
        rows.order(train.seed),
        size,
        train.gradient_accumulation_steps,
        packing if recipe.data.packing else None,
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
