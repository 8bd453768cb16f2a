"""Draws: from the distribution that transformers' own filters make, by seed, row and place alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from aria_finetune.generation.sampling import GREEDY, Sampling, choose, distribution

LOGITS = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("top_p", [0.1, 0.6, 0.95, 1.0])
def test_the_distribution_is_that_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    scores = TemperatureLogitsWarper(temperature)(None, LOGITS.clone())
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    due = scores.softmax(-1)
    probability, token = distribution(LOGITS, Sampling(temperature, top_p, top_k))
    found = torch.zeros_like(due).scatter_(1, token, probability)
    assert (found - due).abs().max() < 1e-6
    assert torch.equal(found > 0, due > 0)


def test_draws_follow_the_distribution() -> None:
    """20,000 places of one row: a share is off by less than five of its standard deviations."""
    sampling, draws = Sampling(1.0, 0.9, 12, seed=3), 20_000
    probability, token = distribution(LOGITS[:1], sampling)
    seen = Counter(choose(LOGITS[:1], sampling, [4], place)[0] for place in range(draws))
    shares = dict(zip(token[0].tolist(), probability[0].tolist(), strict=True))
    assert set(seen) <= {one for one, share in shares.items() if share > 0}
    for one, share in shares.items():
        assert abs(seen[one] / draws - share) <= 5 * (share * (1 - share) / draws) ** 0.5


def test_a_draw_is_by_seed_row_and_place() -> None:
    logits = torch.zeros(1, 10_000)

    def draw(seed: int, row: int, place: int) -> int:
        return choose(logits, Sampling(1.0, seed=seed), [row], place)[0]

    drawn = {(seed, row, place): draw(seed, row, place) for seed in range(2) for row in range(2) for place in range(2)}
    assert len(set(drawn.values())) == 8
    assert all(draw(*what) == token for what, token in drawn.items())
    assert choose(logits.repeat(2, 1), Sampling(1.0), [1, 0], 1) == [drawn[0, 1, 1], drawn[0, 0, 1]]


def test_without_a_temperature_the_likeliest_is_taken() -> None:
    assert choose(LOGITS, GREEDY, [0, 1, 2], 0) == LOGITS.argmax(-1).tolist()


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_numbers_out_of_their_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no sampling"):
        Sampling(**wrong)  # type: ignore[arg-type]
