"""Tokens of our own loop are those of transformers' `generate`; what decoding in NF4 makes dense is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AriaForConditionalGeneration
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.data.chat import ChatTokenizer, Text, Turn
from aria_finetune.errors import UserError
from aria_finetune.generation.decoding import Answer, Wish, decode
from aria_finetune.generation.sampling import Sampling
from aria_finetune.model.experts import LEAN
from aria_finetune.model.grouped_experts import GROUPED
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.loading import load_model, load_processor
from aria_finetune.model.nf4 import EXPERT_TENSORS, expert_state

TOKENS = 64
WORDS = ["What is warmer, red or blue?", "Count to three.", "Say it again, and then once more, slowly:", "Why?"]


@pytest.fixture(scope="module")
def chat() -> ChatTokenizer:
    return ChatTokenizer(load_processor(open_checkpoint("tiny")).tokenizer)


def prompts(chat: ChatTokenizer, words: list[str]) -> dict[str, torch.Tensor]:
    """Prompts padded on the left."""
    rows = [chat.encode([Turn("user", (Text(text),))], generation_prompt=True).ids for text in words]
    width = max(map(len, rows))
    ids = torch.tensor([[2] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def by_transformers(model: Any, batch: dict[str, torch.Tensor], new: int, stops: list[int]) -> list[list[int]]:
    """What `generate` adds to each prompt, without what ends it and what stands behind that."""
    ends: dict[str, Any] = {"eos_token_id": stops} if stops else {"eos_token_id": None, "min_new_tokens": new}
    ids = model.generate(**batch, max_new_tokens=new, do_sample=False, pad_token_id=2, **ends)
    answers = ids[:, batch["input_ids"].shape[1] :].tolist()
    ended = ([place for place, token in enumerate(answer) if token in stops] for answer in answers)
    return [answer[: places[0]] if places else answer for answer, places in zip(answers, ended, strict=True)]


@pytest.mark.parametrize("words", [WORDS[:1], WORDS], ids=["alone", "together"])
def test_greedy_tokens_are_those_of_transformers(chat: ChatTokenizer, words: list[str]) -> None:
    """With ends and without: rows that leave the batch change nothing for those that stay."""
    model = load_model("tiny", experts="fp32", dtype=torch.float32, implementation="eager").model
    batch = prompts(chat, words)
    stops = [chat.end, *chat.encode_text(".")]
    for ends in ([], stops):
        found = decode(model, batch, None, Wish(ends, 24))
        assert [answer.ids for answer in found] == by_transformers(model, batch, 24, ends)
    assert {answer.stop for answer in decode(model, batch, None, Wish([], 3))} == {"length"}


def test_rows_leave_the_batch_at_their_end(chat: ChatTokenizer) -> None:
    model = load_model("tiny", experts="fp32", dtype=torch.float32, implementation=LEAN).model
    batch = prompts(chat, WORDS)
    free = decode(model, batch, None, Wish([], 12))
    stop = free[0].ids[4]
    seen: list[int] = []
    model.model.language_model.register_forward_hook(
        lambda _m, _a, kwargs, _o: seen.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    told: list[tuple[int, int]] = []
    ended = decode(model, batch, None, Wish([stop], 12), watch=lambda row, token: told.append((row, token)))
    for answer, whole in zip(ended, free, strict=True):
        due = whole.ids[: whole.ids.index(stop)] if stop in whole.ids else whole.ids
        assert answer == Answer(due, "end" if stop in whole.ids else "length")
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] == len(WORDS)
    for row, answer in enumerate(ended):
        assert [token for at, token in told if at == row] == answer.ids


def test_an_answer_that_nobody_wants_to_its_end(chat: ChatTokenizer) -> None:
    model = load_model("tiny", experts="fp32", dtype=torch.float32, implementation=LEAN).model
    asked = iter([True, True, True, False])
    (answer,) = decode(model, prompts(chat, WORDS[:1]), None, Wish([], 12), wanted=lambda: next(asked))
    assert answer.stop == "stopped"
    assert len(answer.ids) == 3


def test_numbers_that_are_not_finite_end_it(chat: ChatTokenizer) -> None:
    model = load_model("tiny", experts="fp32", dtype=torch.float32, implementation=LEAN).model
    model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        decode(model, prompts(chat, WORDS[:2]), None, Wish([], 4))


def test_draws_depend_on_seed_and_row_alone(chat: ChatTokenizer) -> None:
    model = load_model("tiny", experts="fp32", dtype=torch.float32, implementation=LEAN).model
    wish = Wish([chat.end], 16, Sampling(temperature=0.9, top_p=0.95, top_k=40, seed=5))
    rows = [11, 12, 13, 14]
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    together = decode(model, prompts(chat, WORDS), None, wish, rows=rows)
    alone = [
        decode(model, prompts(chat, [text]), None, wish, rows=[row])[0] for text, row in zip(WORDS, rows, strict=True)
    ]
    assert together == alone
    assert torch.equal(before, torch.random.get_rng_state())
    other = Wish(wish.stops, 16, Sampling(temperature=0.9, top_p=0.95, top_k=40, seed=6))
    assert decode(model, prompts(chat, WORDS), None, other, rows=rows) != together
    warm = Wish([], 8, Sampling(temperature=3))
    first, second, third = decode(model, prompts(chat, WORDS[:1] * 3), None, warm, rows=[1, 2, 1])
    assert first == third != second


class Dequantised(TorchDispatchMode):
    """Counts the bytes that bitsandbytes makes of NF4, whoever asks for them."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name() == "bitsandbytes::dequantize_4bit":
            self.bytes += result.nbytes
        return result


def dense_twin(packed: AriaForConditionalGeneration) -> AriaForConditionalGeneration:
    """An Aria with every weight in fp32, those that were packed as bitsandbytes dequantises them whole; experts in transformers' loop."""
    dense = load_model("tiny", experts="fp32", dtype=torch.float32, implementation="eager").model
    ours = dict(packed.named_modules())
    for name, module in dense.named_modules():
        if isinstance(module, AriaExperts):
            for tensor in EXPERT_TENSORS:
                getattr(module, tensor).data = dequantize_4bit(*expert_state(ours[name], tensor))
        elif hasattr(getattr(ours[name], "weight", None), "quant_state"):
            weight = ours[name].weight
            module.weight.data = dequantize_4bit(weight.data, weight.quant_state)
    return dense


def bytes_per_token(model: Any, batch: dict[str, torch.Tensor]) -> tuple[list[int], float]:
    """64 greedy tokens, and the bytes dequantised for each but the first, which comes with the prompt."""
    with Dequantised() as counted:

        def begin(_row: int, _token: int) -> None:
            if not begun:
                counted.bytes = 0
            begun.append(True)

        begun: list[bool] = []
        (answer,) = decode(model, batch, None, Wish([], TOKENS), watch=begin)
    assert answer.stop == "length"
    assert len(answer.ids) == TOKENS
    return answer.ids, counted.bytes / (TOKENS - 1)


def test_nf4_gives_the_tokens_of_eager_from_a_fifth_of_the_bytes(
    chat: ChatTokenizer, record_property: Callable[[str, object], None]
) -> None:
    """Without an end, so that 64 are made; the other path dequantises the experts of a layer whole, as transformers does."""
    packed = {
        way: load_model("tiny", dtype=torch.float32, implementation=way).model for way in (LEAN, GROUPED, "eager")
    }
    dense = dense_twin(packed[LEAN])
    config = dense.config.text_config
    share, all_bytes = [], []
    for text in WORDS[:1]:
        batch = prompts(chat, [text])
        (due,) = by_transformers(dense, batch, TOKENS, [])
        found, few = bytes_per_token(packed[LEAN], batch)
        whole, many = bytes_per_token(packed["eager"], batch)
        assert found == whole == due
        assert decode(packed[GROUPED], batch, None, Wish([], TOKENS))[0].ids == due
        share.append(few / many)
        all_bytes.append((few, many))
    expert = 3 * config.hidden_size * config.intermediate_size * 4
    # Of each layer the six experts of a token, and what all tokens go through; on the other side all 64 of them.
    saved = (config.moe_num_experts - config.moe_topk) * expert * config.num_hidden_layers
    assert all(many - few == saved for few, many in all_bytes)
    assert max(share) <= 0.2
    few, many = all_bytes[0]
    record_property(
        "shown",
        f"{TOKENS} greedy tokens are the same; dequantised per token: {few:,.0f} bytes, and {many:,.0f} where whole layers are: "
        f"{few / many:.1%}",
    )
