"""Greedy answers to planned prompts, in batches.

Knows the model and the collator; knows nothing of what the answers are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AriaForConditionalGeneration

from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.collation import Collator
from aria_finetune.model.vision import as_encoder_outputs, image_features

LONG = 8192
"""Tokens of a prompt from which on it stands alone: padding before a prompt takes a mask of tokens by tokens, 4 GiB at 65,536."""


def generate_answers(
    model: Any,
    collator: Collator,
    *,
    base: AriaForConditionalGeneration,
    chat: ChatTokenizer,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Answer every prompt of `collator`, in its order.

    Args:
        model: Aria, with or without an adapter around it.
        collator: made with `generation=True`.
        base: the Aria inside `model`, for the vision tower.
        chat: the tokenizer that rendered the prompts.
        max_new_tokens: limit of one answer.
        batch_size: prompts at a time; prompts of like length go together, and one of more than `LONG` tokens alone.
    """
    answers = [""] * len(collator.plans)
    for rows in batches_of([plan.tokens for plan in collator.plans], batch_size):
        for row, answer in zip(rows, _answer(model, base, collator, chat, rows, max_new_tokens), strict=True):
            answers[row] = answer
    return answers


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


def _answer(
    model: Any,
    base: AriaForConditionalGeneration,
    collator: Collator,
    chat: ChatTokenizer,
    rows: Sequence[int],
    max_new_tokens: int,
) -> list[str]:
    batch = {name: tensor.to(base.device) for name, tensor in collator([{"row": row} for row in rows]).items()}
    features = image_features(base, batch)
    pictures = {} if features is None else {"mm_encoder_outputs": as_encoder_outputs(features)}
    stops = stop_ids(base, chat)
    with torch.no_grad():
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=collator.pad_id,
            **pictures,
        )
    return [_decode(answer, stops, chat) for answer in ids[:, batch["input_ids"].shape[1] :].tolist()]


def stop_ids(base: AriaForConditionalGeneration, chat: ChatTokenizer) -> list[int]:
    """Ids that end an answer: `<|im_end|>` and what the checkpoint's generation config names."""
    named = base.generation_config.eos_token_id
    return sorted({chat.end, *([named] if isinstance(named, int) else named or [])})


def _decode(ids: list[int], stops: Sequence[int], chat: ChatTokenizer) -> str:
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text: str = chat.tokenizer.decode(ids[:end], skip_special_tokens=True)
    return text.strip()
