"""Out of memory, said so that a person knows what to turn: the recipe's knobs in the order of what they cost.

Knows recipes; measures nothing but the peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from aria_finetune.errors import UserError
from aria_finetune.memory import is_out_of_memory, memory_gib, peak_memory_gib
from aria_finetune.recipe import Recipe
from aria_finetune.recipe.checks import SEEING_TARGETS

FEW_TOKENS = 1024
"""Rows this short are not what fills a card."""
Phase = Literal["loading", "training"]


@dataclass(frozen=True)
class Knob:
    """A recipe key, what to set it to, and what that does."""

    setting: str
    effect: str


@contextmanager
def explain_out_of_memory(recipe: Recipe, device: str, phase: Phase, *, longest: int = 0) -> Iterator[None]:
    """Turn running out of memory into a message that names what was used and which knobs to turn.

    Args:
        recipe: what ran.
        device: `cuda` or `cpu`.
        phase: what went on.
        longest: tokens of the longest row.

    Raises:
        UserError: memory ran out within the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows = f"; the longest row has {longest:,} tokens" if longest else ""
        knobs = "".join(f"\n    {knob.setting}  ({knob.effect})" for knob in memory_knobs(recipe, phase, device))
        raise UserError(
            f"out of memory while {phase}: {peak_memory_gib(device):.1f} GiB were in use of "
            f"{memory_gib(device):.1f} GiB{rows}",
            fix=f"one of these, the cheapest first:{knobs}"
            if knobs
            else "use a larger card; the recipe asks for the least",
        ) from error


def memory_knobs(recipe: Recipe, phase: Phase, device: str = "cpu") -> Iterator[Knob]:
    """What in a recipe can be set to need less memory of a device, the cheapest first."""
    if phase == "training":
        yield from _free_knobs(recipe)
    if phase == "training" and recipe.feature_folder is None and not set(SEEING_TARGETS) & set(recipe.lora.targets):
        yield Knob(
            "data.cache_image_features=true",
            "pictures go through the vision tower once, before training, and it leaves memory; --resume goes on with it",
        )
    if recipe.model.experts != "nf4":
        yield Knob("model.experts=nf4", "a quarter of the bytes of bf16 for nine tenths of the weights")
    elif device == "cuda":
        yield from _knobs_that_take_off_the_card(recipe, phase)
    if phase == "training":
        yield from _knobs_that_show_less(recipe)


def _free_knobs(recipe: Recipe) -> Iterator[Knob]:
    """Those that leave the updates as they are; a run can go on with them by --resume."""
    train = recipe.train
    rows = train.per_device_train_batch_size
    if rows > 1:
        yield Knob(
            "train.per_device_train_batch_size=1 "
            f"train.gradient_accumulation_steps={rows * train.gradient_accumulation_steps}",
            "the same updates, one row at a time; --resume goes on with it",
        )
    if recipe.data.packing:
        yield Knob("data.packing=false", "the same updates, more time where rows are short; --resume goes on with it")
    if not train.gradient_checkpointing:
        yield Knob("train.gradient_checkpointing=true", "up to a third more time; --resume goes on with it")
    if train.per_device_eval_batch_size > 1:
        decides = train.load_best_model_at_end or train.early_stopping_patience is not None
        resumed = "starts anew, as evaluations decide what is kept" if decides else "--resume goes on with it"
        yield Knob("train.per_device_eval_batch_size=1", f"slower evaluations; {resumed}")


def _knobs_that_take_off_the_card(recipe: Recipe, phase: Phase) -> Iterator[Knob]:
    train = recipe.train
    if phase == "training" and train.gradient_checkpointing and not train.activation_offloading:
        yield Knob(
            "train.activation_offloading=true", "the inputs of layers wait on the host; --resume goes on with it"
        )
    if recipe.model.embedding == "device":
        yield Knob("model.embedding=host", "0.48 GiB off the card; --resume goes on with it")
    if recipe.model.lm_head == "dense":
        yield Knob("model.lm_head=nf4", "0.36 GiB; the head is rounded to 4 bit")
    implementation, at_a_time = recipe.experts_implementation("cuda"), recipe.moe.experts_at_a_time
    if phase == "training" and implementation == "grouped" and at_a_time is None:
        yield Knob(
            "moe.experts_at_a_time=8",
            "experts are unpacked eight at a time, and the host waits for the GPU in every layer; --resume goes on with it",
        )
    if phase == "training" and implementation != "lean":
        setting = "moe.implementation=lean" + (" moe.experts_at_a_time=null" if at_a_time is not None else "")
        yield Knob(setting, "experts are unpacked one at a time; its speed on a GPU was not measured")
    if recipe.moe.experts_on == "device" and recipe.moe.implementation in ("auto", "grouped", "lean"):
        yield Knob("moe.experts_on=host", "10.2 GiB off the card, and slower; --resume goes on with it")


def _knobs_that_show_less(recipe: Recipe) -> Iterator[Knob]:
    data, lora, train = recipe.data, recipe.lora, recipe.train
    if train.optim == "adamw_torch":
        yield Knob("train.optim=adamw_8bit", "a quarter of the optimizer's state")
    if data.image_size != 490:
        yield Knob("data.image_size=490", "128 tokens per image instead of 256")
    if data.split_images:
        yield Knob("data.split_images=false", "one tile per image")
    if data.num_frames > 1:
        yield Knob(f"data.num_frames={data.num_frames // 2}", "half of the frames of each video")
    if data.max_tokens > FEW_TOKENS:
        yield Knob(f"data.max_tokens={data.max_tokens // 2}", "longer rows are rejected, see data.too_long")
    if lora.rank > 8:
        yield Knob(f"lora.rank={lora.rank // 2}", "a smaller adapter")
