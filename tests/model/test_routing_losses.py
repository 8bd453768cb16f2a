"""The routers' losses against sums written out in fp64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from aria_finetune.model.routing_losses import balance_loss, with_loss, z_loss

TOKENS, EXPERTS, TOP = 40, 16, 6


def routed(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits in fp32, the choices, and a mask with some padding."""
    generator = torch.Generator().manual_seed(seed)
    logits_TE = 3 * torch.randn(TOKENS, EXPERTS, generator=generator) + torch.linspace(-1, 1, EXPERTS)
    real_T = torch.rand(TOKENS, generator=generator) < 0.7
    return logits_TE, logits_TE.topk(TOP).indices, real_T


def by_hand(logits_TE: torch.Tensor, index_TK: torch.Tensor, real_T: torch.Tensor, group: int) -> torch.Tensor:
    """The balance loss with loops, in the dtype of the logits."""
    chosen = [0.0] * (EXPERTS // group)
    probability = [torch.zeros((), dtype=logits_TE.dtype) for _ in chosen]
    tokens = [token for token in range(TOKENS) if real_T[token]]
    for token in tokens:
        exponentials = logits_TE[token].exp()
        for expert in range(EXPERTS):
            probability[expert // group] = probability[expert // group] + exponentials[expert] / exponentials.sum()
        for expert in index_TK[token].tolist():
            chosen[expert // group] += 1
    parts = [
        count / (TOP * len(tokens)) * total / len(tokens) for count, total in zip(chosen, probability, strict=True)
    ]
    return len(chosen) * torch.stack(parts).sum()


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_balance_loss_and_gradient_are_those_by_hand(group: int, padding: bool) -> None:
    logits_TE, index_TK, real_T = routed()
    real_T = real_T if padding else torch.ones(TOKENS, dtype=torch.bool)
    exact_TE = logits_TE.double().requires_grad_()
    due = by_hand(exact_TE, index_TK, real_T, group)
    due.backward()
    ours_TE = logits_TE.clone().requires_grad_()
    load_E = torch.bincount(index_TK[real_T].flatten(), minlength=EXPERTS)
    found = balance_loss(ours_TE, load_E, real_T if padding else None, group)
    found.backward()
    assert found.item() == pytest.approx(due.item(), rel=1e-6)
    assert float((ours_TE.grad - exact_TE.grad).norm() / exact_TE.grad.norm()) < 1e-6
    assert bool((ours_TE.grad[~real_T] == 0).all()), "padding has a gradient"


@pytest.mark.parametrize("padding", [False, True])
def test_z_loss_and_gradient_are_those_by_hand(padding: bool) -> None:
    logits_TE, _, real_T = routed()
    exact_TE = logits_TE.double().requires_grad_()
    rows = exact_TE[real_T] if padding else exact_TE
    due = sum((row.exp().sum().log() ** 2 for row in rows), torch.zeros((), dtype=torch.float64)) / len(rows)
    due.backward()
    ours_TE = logits_TE.clone().requires_grad_()
    found = z_loss(ours_TE, real_T if padding else None)
    found.backward()
    assert found.item() == pytest.approx(due.item(), rel=1e-6)
    assert float((ours_TE.grad - exact_TE.grad).norm() / exact_TE.grad.norm()) < 1e-6


def test_even_use_gives_one_and_one_group_alone_gives_their_number() -> None:
    even_TE = torch.zeros(EXPERTS, EXPERTS)
    assert balance_loss(even_TE, torch.ones(EXPERTS), None, 4).item() == pytest.approx(1)
    one_TE = torch.zeros(5, EXPERTS)
    one_TE[:, 4:8] = 50.0
    load_E = torch.zeros(EXPERTS)
    load_E[4:8] = 5
    assert balance_loss(one_TE, load_E, None, 4).item() == pytest.approx(EXPERTS / 4)
    assert balance_loss(one_TE, load_E, None, 1).item() == pytest.approx(EXPERTS / 4)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="16 experts can't be split into groups of 5"):
        balance_loss(torch.zeros(2, EXPERTS), torch.ones(EXPERTS), None, 5)


def test_a_carried_loss_takes_part_once_whatever_comes_back_for_its_carrier() -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    carrier = torch.tensor([3.0, 4.0], requires_grad=True)
    carried = with_loss(carrier, value.square().sum(), 0.5)
    assert torch.equal(carried, carrier)
    (functional.relu(carried) * torch.tensor([7.0, 0.0])).sum().backward()
    assert carrier.grad.tolist() == [7.0, 0.0]
    assert value.grad.tolist() == [1.0, 2.0], "half of the gradient of a sum of squares"
