"""Where the documents of a row begin. Knows nothing of what is done with them.

Borders rise from 0 to the number of tokens; a document reaches from one to the next. transformers calls a tensor of them
`cu_seq_lens_q`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_on_host: Any = WeakTensorKeyDictionary()
"""Borders that were read from a GPU. Reading waits for it, so the first layer does it for all; nobody changes them in place."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Borders and tokens of each document, on the host, and the int32 tensor that they were read from."""

    borders: tuple[int, ...]
    lengths: tuple[int, ...]
    tensor: torch.Tensor


def document_places(lengths: Sequence[int], device: torch.device | str) -> dict[str, Any]:
    """Arguments of a forward on rows that lie one behind the other (transformers' `FlashAttentionKwargs`).

    Args:
        lengths: tokens of each row.
        device: where the model is.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k`: (rows + 1,), int32, where each row begins and the last ends; `max_length_q` and
        `max_length_k`: tokens of the longest.
    """
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
    longest = max(lengths)
    return {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}


def read_documents(cu_seq_lens: torch.Tensor, tokens: int, max_length: int | None = None) -> Documents:
    """Check borders.

    Args:
        cu_seq_lens: int32 (documents + 1,).
        tokens: of the row.
        max_length: tokens of the longest document or more, where that was said.

    Raises:
        ValueError: they are not borders of documents of at least one token that make up the row.
    """
    if cu_seq_lens.dtype != torch.int32 or cu_seq_lens.ndim != 1:
        found = f"{str(cu_seq_lens.dtype).removeprefix('torch.')} of {cu_seq_lens.ndim} dimensions"
        raise ValueError(f"cu_seq_lens_q must be int32 of one dimension, and is {found}")
    borders = _read(cu_seq_lens)
    lengths = tuple(end - start for start, end in pairwise(borders))
    if not lengths or borders[0] != 0 or borders[-1] != tokens or min(lengths) < 1:
        raise ValueError(f"cu_seq_lens_q must rise from 0 to the row's {tokens} token(s), and is {_shown(borders)}")
    if max_length is not None and max_length < max(lengths):
        raise ValueError(f"max_length_q is {max_length}, and the longest document has {max(lengths)} tokens")
    return Documents(borders, lengths, cu_seq_lens)


def borders_of_mask(
    same_document: Callable[..., torch.Tensor], rows: int, tokens: int, device: torch.device | str
) -> torch.Tensor:
    """Borders, int32, in rows one after the other, of a function that says whether a token may see another.

    Only neighbours are asked for.

    Args:
        same_document: takes indices of row, head, token and token seen, which broadcast, as transformers' mask functions do.
        rows: how many there are.
        tokens: in each of them.
        device: of the indices and of what is returned.
    """
    row_B1 = torch.arange(rows, device=device)[:, None]
    place_1S = torch.arange(1, tokens, device=device)[None]
    begins_BS = torch.ones(rows, tokens, dtype=torch.bool, device=device)
    begins_BS[:, 1:] = ~same_document(row_B1, torch.zeros_like(row_B1), place_1S, place_1S - 1)
    end = torch.tensor([rows * tokens], device=device)
    return torch.cat([begins_BS.flatten().nonzero().flatten(), end]).to(torch.int32)


def _read(cu_seq_lens: torch.Tensor) -> tuple[int, ...]:
    if cu_seq_lens.device.type == "cpu":
        return tuple(cu_seq_lens.tolist())
    known: tuple[int, ...] | None = _on_host.get(cu_seq_lens)
    if known is None:
        known = _on_host[cu_seq_lens] = tuple(cu_seq_lens.tolist())
    return known


def _shown(borders: tuple[int, ...]) -> str:
    if len(borders) <= 6:
        return str(list(borders))
    return f"[{', '.join(map(str, borders[:4]))}, ..., {borders[-1]}]"
