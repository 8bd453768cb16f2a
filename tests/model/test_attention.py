"""The decoder's attention: packed rows as if each document were alone, all else as transformers' sdpa has it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AriaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, sdpa_mask
from trl.trainer.utils import add_fused_lm_head

from aria_finetune.model import attention
from aria_finetune.model.attention import DOCUMENTS, documents_attention, documents_mask
from aria_finetune.model.documents import read_documents
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, adapter_state, add_lora

BORDERS = (0, 7, 8, 140, 200)
TOKENS = BORDERS[-1]
CU = torch.tensor(BORDERS, dtype=torch.int32)


@pytest.fixture(scope="module")
def packed_ids() -> torch.Tensor:
    return torch.randint(10, 700, (1, TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def positions() -> torch.Tensor:
    return torch.cat([torch.arange(end - start) for start, end in pairwise(BORDERS)])[None]


@pytest.fixture
def model(tiny_folder: Path) -> AriaForConditionalGeneration:
    return load_model(str(tiny_folder), experts="fp32", dtype=torch.float32, implementation="lean").model


class Layer(nn.Module):
    """As much of a decoder layer's attention as is looked at."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


def heads(batch: int, count: int, tokens: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(batch, tokens, count, 16, generator=generator).to(dtype).transpose(1, 2)


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    return float((found - due).detach().double().norm() / due.detach().double().norm())


def with_attention(model: AriaForConditionalGeneration, name: str) -> AriaForConditionalGeneration:
    model.config.text_config._attn_implementation = name
    return model


def adapted(model: AriaForConditionalGeneration, *, checkpointing: bool = False) -> PeftModel:
    wrapped = add_lora(model, LoraPlan(dropout=0.0), base_name="tiny", seed=0)
    for name, parameter in adapter_state(wrapped).items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    wrapped.train()
    if checkpointing:
        wrapped.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        wrapped.enable_input_require_grads()
    return wrapped


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scaling", [None, 0.5])
@pytest.mark.parametrize("batch", [1, 3])
def test_rows_are_documents(groups: int, scaling: float | None, batch: int) -> None:
    query, key, value = heads(batch, 4, 150), heads(batch, 4 // groups, 150), heads(batch, 4 // groups, 150)
    found, nothing = documents_attention(Layer(groups), query, key, value, None, scaling=scaling)
    due, _ = sdpa_attention_forward(Layer(groups), query, key, value, None, scaling=scaling)
    assert nothing is None
    assert found.shape == due.shape == (batch, 150, 4, 16)
    assert found.is_contiguous()
    assert distance(found, due) < 1e-6


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("way", ["blocks", "one by one"])
def test_documents_of_a_row(monkeypatch: pytest.MonkeyPatch, groups: int, way: str) -> None:
    if way == "one by one":
        monkeypatch.setattr(attention, "_in_blocks", lambda _: False)
    tensors = [heads(1, count, TOKENS).requires_grad_() for count in (4, 4 // groups, 4 // groups)]
    found, _ = documents_attention(Layer(groups), *tensors, None, cu_seq_lens_q=CU, max_length_q=132)
    parts = [
        sdpa_attention_forward(Layer(groups), *(x[:, :, start:end] for x in tensors), None)[0]
        for start, end in pairwise(BORDERS)
    ]
    due = torch.cat(parts, dim=1)
    upstream = torch.randn(due.shape, generator=torch.Generator().manual_seed(9))
    assert distance(found, due) < 1e-6
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, upstream), torch.autograd.grad(due, tensors, upstream), strict=True
    ):
        assert distance(ours, theirs) < 1e-6


def test_under_autocast_the_output_is_what_sdpa_gives() -> None:
    query, key, value = heads(1, 4, 50), heads(1, 4, 50), heads(1, 4, 50, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = documents_attention(Layer(), query, key, value, None)
        due, _ = sdpa_attention_forward(Layer(), query, key, value, None)
    assert found.dtype == due.dtype == torch.bfloat16
    assert distance(found, due) < 0.005


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool)}, "neither padding nor a cache"),
        ({"key": heads(1, 4, TOKENS + 1), "value": heads(1, 4, TOKENS + 1)}, "neither padding nor a cache"),
        ({"dropout": 0.1}, "nor dropout"),
        ({"query": heads(2, 4, 100), "key": heads(2, 4, 100), "value": heads(2, 4, 100)}, "one row, and there are 2"),
        ({"cu_seq_lens_q": CU[:-1]}, "rise from 0 to the row's 200"),
        ({"max_length_q": 131}, "longest document has 132"),
    ],
)
def test_documents_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    good = {name: heads(1, 4, TOKENS) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        documents_attention(Layer(), **({**good, "attention_mask": None, "cu_seq_lens_q": CU} | change))


def test_what_has_padding_a_cache_or_dropout_goes_to_sdpa() -> None:
    query, key, value = heads(1, 4, 30), heads(1, 4, 40), heads(1, 4, 40)
    mask = torch.rand(1, 1, 30, 40, generator=torch.Generator().manual_seed(0)) < 0.8
    mask[..., 0] = True
    for arguments in ((query, key, value, mask), (query[:, :, :1], key, value, None)):
        found, _ = documents_attention(Layer(), *arguments)
        assert torch.equal(found, sdpa_attention_forward(Layer(), *arguments)[0])
    torch.manual_seed(0)
    found, _ = documents_attention(Layer(), query, query, query, None, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(found, sdpa_attention_forward(Layer(), query, query, query, None, dropout=0.5)[0])


def test_no_mask_is_made_where_nothing_is_masked() -> None:
    assert documents_mask(2, 30, 30) is None
    assert documents_mask(2, 30, 30, attention_mask=torch.ones(2, 30, dtype=torch.bool)) is None
    assert documents_mask(2, 1, 30, q_offset=29) is None


def test_with_padding_before_a_row_the_mask_is_that_of_sdpa() -> None:
    padding = torch.ones(2, 30, dtype=torch.bool)
    padding[1, :9] = False
    found = documents_mask(2, 30, 30, attention_mask=padding)
    due = sdpa_mask(2, 30, 30, attention_mask=padding)
    assert found is not None
    assert torch.equal(found, due)


def test_padding_behind_rows_takes_no_mask_however_long_they_are(
    model: AriaForConditionalGeneration, packed_ids: torch.Tensor
) -> None:
    """(2, 1, 65,536, 65,536) would be 8 GiB. No token sees padding behind it, so real ones are what sdpa makes of them."""
    lengths = torch.tensor([65_536, 40_000])
    assert documents_mask(2, 65_536, 65_536, attention_mask=torch.arange(65_536) < lengths[:, None]) is None
    padding = (torch.arange(TOKENS) < torch.tensor([TOKENS, TOKENS - 17])[:, None]).long()
    ids = packed_ids.expand(2, TOKENS)
    with torch.no_grad():
        found, due = (
            with_attention(model, name)(input_ids=ids, attention_mask=padding, use_cache=False).logits
            for name in (DOCUMENTS, "sdpa")
        )
    assert torch.allclose(found[padding.bool()].float(), due[padding.bool()].float(), atol=1e-4)


def test_positions_that_begin_anew_make_borders_and_no_mask(
    model: AriaForConditionalGeneration, positions: torch.Tensor
) -> None:
    embeddings = torch.zeros(1, TOKENS, 64)
    found = create_causal_mask(model.config.text_config, embeddings, None, None, position_ids=positions)
    assert found.tolist() == list(BORDERS)


def test_the_decoder_alone_has_it(model: AriaForConditionalGeneration) -> None:
    assert model.model.language_model.layers[0].self_attn.config._attn_implementation == DOCUMENTS
    assert model.config.vision_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_packed_row_is_its_documents(
    model: AriaForConditionalGeneration, packed_ids: torch.Tensor, positions: torch.Tensor, checkpointing: bool
) -> None:
    wrapped = adapted(model, checkpointing=checkpointing)
    probe = torch.randn(1, TOKENS, 1, generator=torch.Generator().manual_seed(1))

    def gradients(logits: torch.Tensor) -> torch.Tensor:
        wrapped.zero_grad()
        (logits * probe).mean().backward()
        return torch.cat([p.grad.flatten() for p in adapter_state(wrapped).values() if p.grad is not None])

    lengths = {"cu_seq_lens_q": CU, "cu_seq_lens_k": CU, "max_length_q": 132, "max_length_k": 132}
    packed = wrapped(input_ids=packed_ids, position_ids=positions, use_cache=False, **lengths).logits
    alone = [wrapped(input_ids=packed_ids[:, a:b], use_cache=False).logits for a, b in pairwise(BORDERS)]
    assert distance(packed, torch.cat(alone, dim=1)) < 1e-6
    assert distance(gradients(packed), gradients(torch.cat(alone, dim=1))) < 2e-6


def test_documents_are_found_by_their_positions_too(
    model: AriaForConditionalGeneration, packed_ids: torch.Tensor, positions: torch.Tensor
) -> None:
    with torch.no_grad():
        said = model(input_ids=packed_ids, position_ids=positions, cu_seq_lens_q=CU).logits
        seen = model(input_ids=packed_ids, position_ids=positions, use_cache=False).logits
        by_sdpa = with_attention(model, "sdpa")(input_ids=packed_ids, position_ids=positions, use_cache=False).logits
    assert distance(seen, by_sdpa) < 1e-6
    assert torch.equal(said, seen)


def test_no_document_reaches_another(
    model: AriaForConditionalGeneration, packed_ids: torch.Tensor, positions: torch.Tensor
) -> None:
    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.model.language_model(
                inputs_embeds=model.get_input_embeddings()(ids), position_ids=positions, cu_seq_lens_q=CU
            ).last_hidden_state
        return found

    changed = packed_ids.clone()
    changed[0, 8:140] += 1
    before, after = logits(packed_ids), logits(changed)
    # Experts sum over their tokens in an order that changes with the routing of others, and so in the last bits.
    assert distance(after[:, :8], before[:, :8]) < 1e-6
    assert distance(after[:, 140:], before[:, 140:]) < 1e-6
    assert distance(after[:, 8:140], before[:, 8:140]) > 0.1


def test_trl_hands_documents_through(
    model: AriaForConditionalGeneration, packed_ids: torch.Tensor, positions: torch.Tensor
) -> None:
    add_fused_lm_head(model)
    wrapped = adapted(model, checkpointing=True)
    labels = packed_ids.clone()
    labels[:, list(BORDERS[:-1])] = -100
    packed = wrapped(
        input_ids=packed_ids, position_ids=positions, labels=labels, cu_seq_lens_q=CU, fused_lm_head=True
    ).log_probs
    for start, end in pairwise(BORDERS):
        if end - start > 1:
            ids = packed_ids[:, start:end]
            alone = wrapped(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
            assert distance(packed[:, start : end - 1], alone) < 1e-6


class Shapes(TorchDispatchMode):
    """Remembers the shapes of what operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.Size] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        found = result if isinstance(result, tuple | list) else [result]
        self.seen |= {x.shape for x in found if isinstance(x, torch.Tensor)}
        return result


@pytest.mark.parametrize("said", [True, False])
def test_nothing_of_tokens_by_tokens_is_made(
    model: AriaForConditionalGeneration, packed_ids: torch.Tensor, positions: torch.Tensor, said: bool
) -> None:
    lengths = {"cu_seq_lens_q": CU} if said else {}

    def square(name: str) -> bool:
        with torch.no_grad(), Shapes() as shapes:
            with_attention(model, name)(input_ids=packed_ids, position_ids=positions, use_cache=False, **lengths)
        return any(list(shape[-2:]) == [TOKENS, TOKENS] for shape in shapes.seen)

    assert not square(DOCUMENTS)
    assert square("sdpa")


def test_padded_batches_and_answers_are_those_of_sdpa(model: AriaForConditionalGeneration) -> None:
    ids = torch.randint(10, 700, (2, 30), generator=torch.Generator().manual_seed(2))
    padding = torch.ones(2, 30, dtype=torch.long)
    padding[1, :11] = 0

    def answers(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = with_attention(model, name)
        with torch.no_grad():
            logits = chosen(input_ids=ids, attention_mask=padding).logits
        return logits, chosen.generate(
            input_ids=ids, attention_mask=padding, max_new_tokens=12, min_new_tokens=12, do_sample=False
        )

    for found, due in zip(answers(DOCUMENTS), answers("sdpa"), strict=True):
        assert torch.equal(found, due)


def test_an_unpadded_prompt_is_answered_as_with_sdpa(model: AriaForConditionalGeneration) -> None:
    ids = torch.randint(10, 700, (1, 150), generator=torch.Generator().manual_seed(3))

    def answer(name: str) -> torch.Tensor:
        found: torch.Tensor = with_attention(model, name).generate(
            input_ids=ids, max_new_tokens=12, min_new_tokens=12, do_sample=False
        )
        return found

    assert torch.equal(answer(DOCUMENTS), answer("sdpa"))


@pytest.mark.parametrize(
    ("dtype", "size", "capability", "flash"),
    [
        (torch.bfloat16, 128, (9, 0), True),
        (torch.float16, 64, (8, 0), True),
        (torch.float32, 128, (9, 0), False),
        (torch.bfloat16, 12, (9, 0), False),
        (torch.bfloat16, 128, (7, 5), False),
    ],
)
def test_shapes_of_the_way_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: int, capability: tuple[int, int], flash: bool
) -> None:
    """Without one: on tensors that have shapes and a device, and no values; `sdpa` and gradients don't go without."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    documents = read_documents(CU, TOKENS)
    with FakeTensorMode(allow_non_fake_inputs=True):
        query = torch.empty(TOKENS, 4, size, dtype=dtype, device="cuda")
        way = attention._way(query)
        assert way is (attention._flash if flash else attention._one_by_one)
        if flash:
            output = way(query, query, query, documents, 0.1)
            assert output.shape == query.shape
            assert output.dtype == dtype
