"""Cards that a plan can be made for without having one: their memory and their rate.

Memory is what CUDA reports, which is less than the name says. Rates are dense bf16 products with fp32 sums from the makers'
data sheets, where GeForce cards have half of what they reach with fp16 sums. Cards without bf16 are not here. Neither figure
was measured here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aria_finetune.errors import UserError


@dataclass(frozen=True)
class Card:
    """A GPU: its name, its memory, and how many 10^12 bf16 operations it does in a second at best."""

    name: str
    memory_gib: float
    teraflops: float


CARDS = (
    Card("RTX 3060", 11.6, 25.0),
    Card("RTX 4070", 11.6, 58.0),
    Card("RTX 5080", 15.5, 112.5),
    Card("RTX 4060 Ti", 15.6, 44.0),
    Card("RTX 4080", 15.6, 97.5),
    Card("RTX A4000", 15.6, 76.7),
    Card("RTX 4000 Ada", 19.5, 96.0),
    Card("L4", 22.0, 121.0),
    Card("A10", 22.0, 125.0),
    Card("RTX 4090", 23.5, 165.0),
    Card("RTX 3090", 23.6, 71.0),
    Card("RTX 5090", 31.4, 209.5),
    Card("A100 40GB", 39.4, 312.0),
    Card("L40S", 44.4, 362.0),
    Card("RTX A6000", 47.4, 154.8),
    Card("RTX 6000 Ada", 47.4, 364.2),
    Card("A100 80GB", 79.1, 312.0),
    Card("H100", 79.1, 989.0),
    Card("H200", 139.7, 989.0),
    Card("B200", 178.0, 2250.0),
)
"""By memory."""


def find_card(text: str) -> Card:
    """The card that a person means by `4090`, `h100` or `a100 80gb`.

    Raises:
        UserError: none has these words in its name, or several have.
    """
    fitting = [card for card in CARDS if _words(text) <= _words(card.name)]
    exact = [card for card in fitting if _words(text) == _words(card.name)]
    known = card_of(text)
    chosen = exact or fitting or ([known] if known else [])
    if text.strip() and len(chosen) == 1:
        return chosen[0]
    if text.strip() and chosen:
        raise UserError(f"{text!r} may be {' or '.join(card.name for card in chosen)}", fix="say which")
    names = ", ".join(card.name for card in CARDS)
    raise UserError(f"no card {text!r} is known", fix=f"give --gpu-memory in GiB, or one of {names}")


def card_of(device: str) -> Card | None:
    """The card that CUDA calls `device`, such as `NVIDIA A100-SXM4-80GB`; None if it is not known."""
    fitting = [card for card in CARDS if _words(card.name) <= _words(device)]
    return max(fitting, key=lambda card: len(_words(card.name))) if fitting else None


def _words(text: str) -> set[str]:
    spaced = re.sub(r"\brtx(?=\d)", "rtx ", re.sub(r"(\d) ?gi?b\b", r"\1gb", text.lower()))
    return set(re.findall(r"[a-z0-9]+", spaced))
