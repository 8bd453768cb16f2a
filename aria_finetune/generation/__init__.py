"""Answers to planned prompts, in batches.

Knows the model and the collator; knows nothing of what the answers are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AriaForConditionalGeneration

from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.collation import Collator
from aria_finetune.generation.ahead import made_ahead
from aria_finetune.generation.decoding import Answer, Watch, Wish, decode
from aria_finetune.generation.sampling import GREEDY, Sampling
from aria_finetune.model.vision import image_features

LONG = 8192
"""Tokens of a prompt from which on it stands alone: padding before a prompt takes a mask of tokens by tokens, 4 GiB at 65,536."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as a person reads it, and whether it was cut: as long as it might be, and not at its end."""

    text: str
    cut: bool = False


def generate_answers(
    model: Any,
    collator: Collator,
    *,
    base: AriaForConditionalGeneration,
    chat: ChatTokenizer,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling = GREEDY,
) -> list[Reply]:
    """Answer every prompt of `collator`, in its order.

    Args:
        model: Aria, with or without an adapter around it.
        collator: made with `generation=True`.
        base: the Aria inside `model`, for the vision tower.
        chat: the tokenizer that rendered the prompts.
        max_new_tokens: limit of one answer.
        batch_size: prompts at a time; prompts of like length go together, and one of more than `LONG` tokens alone.
        sampling: how tokens are chosen; draws go by the places of rows in the collator.
    """
    wish = Wish(stop_ids(base, chat), max_new_tokens, sampling)
    answers = [Reply("")] * len(collator.plans)
    for rows, batch in collated(collator, batch_size):
        for row, answer in zip(rows, answer_batch(model, base, batch, wish, rows=rows), strict=True):
            answers[row] = Reply(text_of(answer, chat), cut=answer.stop == "length")
    return answers


def collated(collator: Collator, batch_size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Numbers of prompts that are answered together, and their batch; media of the next are decoded while one is answered."""

    def make(rows: list[int]) -> tuple[list[int], dict[str, Any]]:
        return rows, collator([{"row": row} for row in rows])

    return made_ahead(make, batches_of([plan.tokens for plan in collator.plans], batch_size))


def batches_of(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of prompts that are answered together, from the shortest on, by how many tokens each has."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) == batch_size or lengths[row] > LONG):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def answer_batch(
    model: Any,
    base: AriaForConditionalGeneration,
    batch: dict[str, Any],
    wish: Wish,
    *,
    rows: Sequence[int] | None = None,
    watch: Watch | None = None,
    wanted: Callable[[], bool] | None = None,
) -> list[Answer]:
    """Answer what a collator made with `generation=True`; `rows`, `watch` and `wanted` as in `decode`."""
    held = {name: tensor.to(base.device) for name, tensor in batch.items()}
    with torch.no_grad():
        features = image_features(base, held)
    return decode(model, held, features, wish, rows=rows, watch=watch, wanted=wanted)


def stop_ids(base: AriaForConditionalGeneration, chat: ChatTokenizer) -> list[int]:
    """Ids that end an answer: `<|im_end|>` and what the checkpoint's generation config names."""
    named = base.generation_config.eos_token_id
    return sorted({chat.end, *([named] if isinstance(named, int) else named or [])})


def text_of(answer: Answer, chat: ChatTokenizer) -> str:
    """An answer as a person reads it."""
    text: str = chat.tokenizer.decode(answer.ids, skip_special_tokens=True)
    return text.strip()
