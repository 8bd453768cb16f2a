"""The embedding in host memory: rows are looked up there, and only they go to the device. Knows nothing of the model around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional


class HostEmbedding(nn.Embedding):
    """A frozen table (tokens, hidden) that stays where it is, on the CPU, whatever becomes of the model it is part of.

    Args:
        table: anywhere; it is taken to the CPU.
        padding_idx: of the embedding whose table it is.
    """

    def __init__(self, table: torch.Tensor, padding_idx: int | None) -> None:
        tokens, hidden = table.shape
        super().__init__(tokens, hidden, padding_idx, _weight=table.detach().cpu(), _freeze=True)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (the name that nn.Embedding gives it)
        """Rows (..., hidden) of the ids (...), on the device of the ids."""
        return functional.embedding(input.to(self.weight.device), self.weight).to(input.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:  # noqa: ARG002, FBT001, FBT002
        """What `to`, `cuda` and `half` of a model do to each of its modules: nothing here."""
        return self


def hold_embedding_on_host(model: Any) -> None:
    """Replace the input embedding of a transformers model by one in host memory."""
    before = model.get_input_embeddings()
    after = HostEmbedding(before.weight.data, before.padding_idx)
    model.set_input_embeddings(after.train(before.training))
