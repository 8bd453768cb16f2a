"""Token by token: the prompts of a batch go through the model once, each new token alone, beside a cache of keys and values.

A row that has come to its end leaves the batch, so that nothing is computed for it, and no expert made dense, any more. Knows the
model and what comes next, nothing of rows or of text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache

from aria_finetune.errors import UserError
from aria_finetune.generation.sampling import GREEDY, Sampling, choose
from aria_finetune.model.vision import as_encoder_outputs

Stop = Literal["end", "length", "stopped"]
Watch = Callable[[int, int], None]
"""Takes the place of a row in its batch and its next token."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of an answer without the one that ended it, and why there are no more.

    `end`: the model ended it; `length`: it is as long as it may be; `stopped`: somebody did not want more.
    """

    ids: list[int]
    stop: Stop


@dataclass(frozen=True, slots=True)
class Wish:
    """How a batch is answered: which tokens end an answer, how many there may be, and how they are chosen."""

    stops: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY


def decode(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    features: torch.Tensor | None,
    wish: Wish,
    *,
    rows: Sequence[int] | None = None,
    cache: DynamicCache | None = None,
    watch: Watch | None = None,
    wanted: Callable[[], bool] | None = None,
) -> list[Answer]:
    """Answer a batch of prompts.

    Args:
        model: Aria, with or without an adapter around it, in evaluation mode.
        batch: `input_ids` and `attention_mask` (batch, tokens), padded on the left; on the model's device.
        features: (1, image tokens, hidden), of the pictures in it.
        wish: what is wanted.
        rows: the number of each row, which its draws go by; their places if it is left out.
        cache: of what stands before a single row; it has grown by the row and all of its answer but the last token.
        watch: is told of each token that is part of an answer, as it comes.
        wanted: is asked before each step whether to go on.

    Raises:
        UserError: the model computes numbers that are not finite.
    """
    ids_BS, mask_BS = batch["input_ids"], batch["attention_mask"]
    numbers = list(rows) if rows is not None else list(range(len(ids_BS)))
    padded = not bool(mask_BS.all())
    before = 0 if cache is None else cache.get_seq_length()
    cache = DynamicCache() if cache is None else cache
    answers = [Answer([], "length") for _ in numbers]
    left = list(range(len(numbers)))
    inputs: dict[str, Any] = {} if features is None else {"mm_encoder_outputs": as_encoder_outputs(features)}
    position_BS = mask_BS.long().cumsum(dim=1).sub_(1).clamp_(min=0) + before
    for place in range(wish.max_new_tokens):
        if wanted is not None and not wanted():
            return [Answer(answer.ids, "stopped") if row in left else answer for row, answer in enumerate(answers)]
        with torch.no_grad():
            output = model(
                input_ids=ids_BS,
                attention_mask=mask_BS if padded else None,
                position_ids=position_BS,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **inputs,
            )
        _check(output.logits[:, -1])
        tokens = choose(output.logits[:, -1], wish.sampling, [numbers[row] for row in left], place)
        going_on = []
        for at, (row, token) in enumerate(zip(left, tokens, strict=True)):
            if token in wish.stops:
                answers[row] = Answer(answers[row].ids, "end")
                continue
            answers[row].ids.append(token)
            going_on.append(at)
            if watch is not None:
                watch(row, token)
        if not going_on or place + 1 == wish.max_new_tokens:
            break
        if len(going_on) < len(left):
            chosen = torch.tensor(going_on, device=ids_BS.device)
            cache.batch_select_indices(chosen)
            mask_BS, position_BS = mask_BS[chosen], position_BS[chosen]
            left = [left[at] for at in going_on]
        inputs = {}
        ids_BS = torch.tensor([[tokens[at]] for at in going_on], device=ids_BS.device)
        position_BS = position_BS[:, -1:] + 1
        mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(left), 1)], dim=1)
    return answers


def _check(logits_BV: torch.Tensor) -> None:
    if not bool(logits_BV.amax(dim=-1).isfinite().all()):
        raise UserError(
            "the model's numbers are not finite",
            fix="take another checkpoint of the run, or see whether the weights are damaged",
        )
