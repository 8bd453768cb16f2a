"""Noise on the embeddings of a row, in training only (NEFTune, arXiv 2310.05914), drawn from a seed that is the row's own.

Uniform in alpha / sqrt(L d) on both sides of zero, L being the tokens of the row, image tokens among them, and d the hidden
size, as in the paper's code (https://github.com/neelsjain/NEFTune); transformers' hook takes the length with padding for L, which
depends on the other rows, and draws from the global generator. Image features take the places of their embeddings after
this, so that the noise is on text alone, as with that hook. Knows nothing of epochs' orders or the trainer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from aria_finetune.model.dropout import RowRandomness, row_randomness

NUMBER = -1
"""Tells the noise of a row from its dropouts, which count from 0."""


class RowNoise(nn.Module):
    """Adds noise by the seeds in `rows`, which must describe the batch.

    Args:
        alpha: of the paper, which tries 5, 10 and 15.
        rows: shared with the dropouts of a model.
    """

    def __init__(self, alpha: float, rows: RowRandomness) -> None:
        super().__init__()
        self.alpha = alpha
        self.rows = rows

    def forward(self, x_BSH: torch.Tensor) -> torch.Tensor:
        """Add noise in training; (batch, tokens, hidden) in and out, any float dtype. Padding has none.

        Raises:
            RuntimeError: the input is not the batch that was described.
        """
        if not self.training:
            return x_BSH
        noise_BSH = torch.zeros(x_BSH.shape, device=x_BSH.device)
        for segment, generator in self.rows.generators(x_BSH.shape, NUMBER, x_BSH.device):
            bound = self.alpha / math.sqrt(segment.length * x_BSH.shape[-1])
            place = noise_BSH[segment.batch, segment.start : segment.start + segment.length]
            place.uniform_(-bound, bound, generator=generator)
        return (x_BSH.float() + noise_BSH).to(x_BSH.dtype)


def add_noise(model: Any, alpha: float) -> None:
    """Put noise behind the input embedding of a transformers model; weights and their names stay as they are."""
    embedding = model.get_input_embeddings()
    embedding.add_module("noise", RowNoise(alpha, row_randomness(model) or RowRandomness()))
    embedding.register_forward_hook(_with_noise)


def _with_noise(embedding: nn.Module, _: object, embedded_BSH: torch.Tensor) -> torch.Tensor:
    noisy_BSH: torch.Tensor = embedding.get_submodule("noise")(embedded_BSH)
    return noisy_BSH
