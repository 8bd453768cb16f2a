"""Attention of packed rows: a token sees itself and the tokens before it in its own document.

Several documents lie in one row. Where each begins `cu_seq_lens_q` says, which transformers hands through from the model's keywords to
every layer; no mask of (tokens, tokens) is built for them. What has no documents is left to transformers' `sdpa` where that is
as fast or has to be, such as padded batches and generation with a cache, so that a decoder can use this for everything.
Knows nothing of how rows are packed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from aria_finetune.model.attention_blocks import attend
from aria_finetune.model.documents import Documents, borders_of_mask, read_documents
from aria_finetune.model.expert_weights import arithmetic

DOCUMENTS = "documents"
"""The name under which transformers knows it (`attn_implementation`)."""
FLASH_DTYPES = (torch.float16, torch.bfloat16)
FLASH_HEAD_SIZES = range(8, 257, 8)
FLASH_CAPABILITY = (8, 0)
"""What the kernel behind `varlen_attn` takes: dtypes, head sizes, GPUs from this one on (torch, Attention.cu and varlen.py)."""
VARLEN_IS_CAUSAL = "window_size" in inspect.signature(varlen_attn).parameters
"""From torch 2.11 on; before, it takes no scale either."""


def documents_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of a decoder layer, which calls it.

    Args:
        module: the layer's attention.
        query: (batch, heads, tokens, size), any float dtype.
        key: (batch, heads or fewer, keys, size); there are more keys than tokens with a cache.
        value: likewise.
        attention_mask: what `documents_mask` made, or a mask (batch, 1, tokens, keys) of the caller's own.
        dropout: of probabilities, which documents can't have.
        scaling: of the scores; 1 / sqrt(size) if it is left out.
        cu_seq_lens_q: int32 (documents + 1,): where each document of the one row begins, and the number of tokens. Without
            it documents are where `position_ids` begin anew, or else the rows.
        max_length_q: tokens of the longest document or more, if given.
        kwargs: what else `sdpa` takes. `cu_seq_lens_k` and `max_length_k` are those of the queries, for a token is both.

    Returns:
        (batch, tokens, heads, size), and None for the probabilities.

    Raises:
        ValueError: the documents don't make up one row without padding or cache, or dropout is asked of them.
    """
    borders, attention_mask = _borders_of(attention_mask, cu_seq_lens_q)
    batch, _, tokens, _ = query.shape
    alone = attention_mask is None and key.shape[2] == tokens and not dropout
    if borders is None:
        if not alone or not _in_blocks(query):
            plain: Any = sdpa_attention_forward
            output, _ = plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
            return output, None
        borders = torch.arange(0, batch * tokens + 1, tokens, dtype=torch.int32)
    elif not alone:
        raise ValueError("documents in a row go with neither padding nor a cache nor dropout")
    elif cu_seq_lens_q is not None and batch != 1:
        raise ValueError(f"cu_seq_lens_q is for a batch of one row, and there are {batch}")
    documents = read_documents(borders, batch * tokens, max_length_q)
    groups = getattr(module, "num_key_value_groups", 1)
    query_THD, key_THD, value_THD = (
        _as_autocast(x).transpose(1, 2).flatten(0, 1) for x in (query, repeat_kv(key, groups), repeat_kv(value, groups))
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output_THD = _way(query_THD)(query_THD, key_THD, value_THD, documents, scale)
    return output_THD.view(batch, tokens, *output_THD.shape[1:]), None


def documents_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask that goes with `documents_attention`; transformers calls it, once for all layers.

    Args:
        batch_size: rows.
        q_length: tokens in each.
        kv_length: keys.
        mask_function: which token sees which: transformers' plain causal one, or the one that it makes where neither a cache nor
            an attention mask is given and `position_ids` begin anew within a row.
        attention_mask: (batch, keys), bool, false on padding.
        use_vmap: whether the caller has rules of its own, which Aria's decoder has not.
        device: of the mask.
        kwargs: what else `sdpa_mask` takes.

    Returns:
        None where rows are whole documents, or such with padding behind them, which no token before it sees; where positions
        begin anew, borders of documents, int32 (documents + 1,), in the rows one after the other; with padding before them or a
        cache what `sdpa` gets, (batch, 1, tokens, keys) or None.
    """
    if (
        mask_function is causal_mask_function
        and not use_vmap
        and q_length == kv_length
        and _ends_in_padding(attention_mask)
    ):
        return None
    if mask_function is not causal_mask_function and attention_mask is None and not use_vmap:
        return borders_of_mask(mask_function, batch_size, q_length, device)
    mask: torch.Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        use_vmap=use_vmap,
        device=device,
        **kwargs,
    )
    return mask


def _ends_in_padding(attention_mask_BS: torch.Tensor | None) -> bool:
    """Whether what a mask leaves out stands behind all else in its row; a GPU is waited for."""
    if attention_mask_BS is None or attention_mask_BS.ndim != 2:
        return False
    return not bool((attention_mask_BS[:, 1:] > attention_mask_BS[:, :-1]).any())


def _borders_of(
    attention_mask: torch.Tensor | None, cu_seq_lens_q: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Borders of documents, which `documents_mask` may have found too, and what is left of the mask."""
    if attention_mask is None or attention_mask.ndim != 1:
        return cu_seq_lens_q, attention_mask
    return (attention_mask if cu_seq_lens_q is None else cu_seq_lens_q), None


def _as_autocast(x: torch.Tensor) -> torch.Tensor:
    """In the dtype that autocast gives what `sdpa` takes."""
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _in_blocks(query: torch.Tensor) -> bool:
    """Whether our own blocks are the way: on a CPU, and not where it has instructions for products in 16 bit."""
    return query.device.type == "cpu" and arithmetic(query.dtype, query.device).itemsize > 2


def _way(query_THD: torch.Tensor) -> Callable[..., torch.Tensor]:
    if _in_blocks(query_THD):
        return _blocks
    flash = (
        query_THD.is_cuda
        and VARLEN_IS_CAUSAL
        and query_THD.dtype in FLASH_DTYPES
        and query_THD.shape[-1] in FLASH_HEAD_SIZES
        and torch.cuda.get_device_capability(query_THD.device) >= FLASH_CAPABILITY
    )
    return _flash if flash else _one_by_one


def _blocks(
    query_THD: torch.Tensor, key_THD: torch.Tensor, value_THD: torch.Tensor, documents: Documents, scale: float
) -> torch.Tensor:
    return attend(query_THD, key_THD, value_THD, documents.borders, scale)


def _flash(
    query_THD: torch.Tensor, key_THD: torch.Tensor, value_THD: torch.Tensor, documents: Documents, scale: float
) -> torch.Tensor:
    borders, longest = documents.tensor.to(query_THD.device), max(documents.lengths)
    output_THD = varlen_attn(
        query_THD, key_THD, value_THD, borders, borders, longest, longest, scale=scale, window_size=(-1, 0)
    )
    assert isinstance(output_THD, torch.Tensor)  # noqa: S101 (no log-sum-exp was asked for)
    return output_THD


def _one_by_one(
    query_THD: torch.Tensor, key_THD: torch.Tensor, value_THD: torch.Tensor, documents: Documents, scale: float
) -> torch.Tensor:
    """`sdpa` for one document after the other."""
    lengths = list(documents.lengths)
    queries, keys, values = (torch.split(x_THD, lengths) for x_THD in (query_THD, key_THD, value_THD))
    outputs = []
    for parts_THD in zip(queries, keys, values, strict=True):
        query, key, value = (part_THD[None].transpose(1, 2) for part_THD in parts_THD)
        output = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


ALL_ATTENTION_FUNCTIONS.register(DOCUMENTS, documents_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(DOCUMENTS, documents_mask)
