"""How far two models are from each other by their logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Drift:
    """Distances between two models on the same prompts.

    `logit_max` and `logit_mean` are absolute differences of logits, `kl` the mean over positions of
    KL(live || other) in nats, `agreement` the share of positions with the same first choice.
    """

    logit_max: float
    logit_mean: float
    kl: float
    agreement: float

    def describe(self) -> str:
        """One line for people."""
        return (
            f"logits differ by at most {self.logit_max:.2e} (mean {self.logit_mean:.2e}), "
            f"KL {self.kl:.2e} nats, same first choice at {self.agreement:.1%} of positions"
        )


def compare(live_PV: torch.Tensor, other_PV: torch.Tensor) -> Drift:
    """Distances between the logits (positions, vocabulary) of two models."""
    difference = (live_PV - other_PV).abs()
    log_live, log_other = live_PV.log_softmax(-1), other_PV.log_softmax(-1)
    return Drift(
        logit_max=difference.max().item(),
        logit_mean=difference.mean().item(),
        kl=(log_live.exp() * (log_live - log_other)).sum(-1).mean().item(),
        agreement=(live_PV.argmax(-1) == other_PV.argmax(-1)).float().mean().item(),
    )
