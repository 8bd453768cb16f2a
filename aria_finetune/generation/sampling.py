"""Which token comes next: the likeliest, or one drawn by a seed.

What is drawn for a row depends on the seed, the row's number and the place in its answer alone, not on the rows beside it, on the
device or on what else draws numbers. Knows logits, nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn; a `temperature` of 0 takes the likeliest token, and nothing is drawn.

    `top_k` of 0 keeps all tokens; `top_p` keeps the likeliest whose probabilities add up to it (nucleus sampling,
    arXiv 1904.09751), of those that `top_k` left.

    Raises:
        ValueError: a number is out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"no sampling: {self}")


GREEDY = Sampling()


def choose(logits_BV: torch.Tensor, sampling: Sampling, rows: Sequence[int], place: int) -> list[int]:
    """The next token of each row.

    Args:
        logits_BV: (batch, vocabulary), any float dtype.
        sampling: how they are chosen.
        rows: the number of each row, which its draws go by.
        place: of the token in the answer, from 0.
    """
    if sampling.temperature == 0:
        likeliest: list[int] = logits_BV.argmax(dim=-1).tolist()
        return likeliest
    probability_BV, token_BV = distribution(logits_BV, sampling)
    draws = [random.Random(f"{sampling.seed}:{row}:{place}").random() for row in rows]  # noqa: S311 (seeded)
    below_BV = probability_BV.double().cumsum(dim=-1)
    drawn_B1 = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device)[:, None] * below_BV[:, -1:]
    # The first token whose share reaches beyond the number drawn; what was left out has no share and is never it.
    chosen_B1 = (below_BV <= drawn_B1).sum(dim=-1, keepdim=True)
    chosen: list[int] = token_BV.gather(1, chosen_B1)[:, 0].tolist()
    return chosen


def distribution(logits_BV: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """What a token is drawn from: probabilities (batch, vocabulary), fp32, the largest first, and whose they are.

    Those that are left out have 0; of equal ones the token with the lower number comes first.
    """
    scaled_BV = logits_BV.float() / sampling.temperature
    sorted_BV, token_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_BV[:, sampling.top_k :] = -torch.inf
    probability_BV = sorted_BV.softmax(dim=-1)
    if sampling.top_p < 1:
        before_BV = probability_BV.cumsum(dim=-1) - probability_BV
        out_BV = before_BV >= sampling.top_p
        out_BV[:, 0] = False
        probability_BV = probability_BV.masked_fill(out_BV, 0)
        probability_BV = probability_BV / probability_BV.sum(dim=-1, keepdim=True)
    return probability_BV, token_BV
