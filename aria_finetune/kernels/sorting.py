"""Which slots go to which expert, without asking the device for a number."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sorting:
    """The slots of a (tokens, top_k) table in the order of their experts; slot `t * top_k + k` is of token `t`.

    Attributes:
        slots: int32 (S,), the slot of each row of what is sorted by expert.
        rows: int32 (S,), the other way round: the row of each slot.
        ends: int32 (experts,), the row behind the last one of each expert.
        top_k: slots of a token.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    ends: torch.Tensor
    top_k: int


def sort_by_expert(index_TK: torch.Tensor, experts: int) -> Sorting:
    """Sort slots by expert and, within one, by token. `index_TK` holds integers from 0 to `experts` - 1."""
    expert_S, slot_S = torch.sort(index_TK.reshape(-1), stable=True)
    numbers_E = torch.arange(experts, device=index_TK.device, dtype=index_TK.dtype)
    # Neither bincount nor nonzero: on a GPU they wait for it.
    end_E = torch.searchsorted(expert_S, numbers_E, right=True, out_int32=True)
    row_S = torch.empty_like(slot_S, dtype=torch.int32)
    row_S[slot_S] = torch.arange(len(slot_S), device=slot_S.device, dtype=torch.int32)
    return Sorting(slot_S.to(torch.int32), row_S, end_E, index_TK.shape[1])
