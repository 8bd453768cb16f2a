"""Cards by what people and CUDA call them."""

from __future__ import annotations

import pytest

from aria_finetune.errors import UserError
from aria_finetune.planner.cards import CARDS, card_of, find_card


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("4090", "RTX 4090"),
        ("rtx 3090", "RTX 3090"),
        ("h100", "H100"),
        ("A100 80GB", "A100 80GB"),
        ("a100-40 gib", "A100 40GB"),
        ("RTX 6000 Ada", "RTX 6000 Ada"),
        ("l4", "L4"),
        ("rtx4090", "RTX 4090"),
        ("GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
    ],
)
def test_what_a_person_writes(text: str, due: str) -> None:
    assert find_card(text).name == due


@pytest.mark.parametrize(
    ("text", "message"),
    [("a100", "may be A100 40GB or A100 80GB"), ("gtx 970", "no card 'gtx 970' is known"), ("", "no card")],
)
def test_what_is_no_card(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_card(text)


@pytest.mark.parametrize(
    ("device", "due"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_what_cuda_calls_it(device: str, due: str | None) -> None:
    card = card_of(device)
    assert (card.name if card else None) == due


def test_the_table_is_in_order() -> None:
    assert [card.memory_gib for card in CARDS] == sorted(card.memory_gib for card in CARDS)
    assert len({card.name for card in CARDS}) == len(CARDS)
