"""Where the rows of a packed batch lie, in the words of transformers' attention functions. Knows nothing of attention itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch


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
