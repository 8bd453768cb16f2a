"""How healthy routing is, from counts of choices: entropy, dead and overloaded experts, groups that take over. Only arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

EVEN_CHOICES = 16
"""How often an expert must have been chosen, were all chosen alike, before one that never was counts as dead."""
OVERLOADED = 4.0
"""From how many times the even share on an expert counts as overloaded."""
DOMINANT = 0.5
"""From which share of all choices on a group counts as having taken over."""


def entropy(load: Sequence[int]) -> float:
    """Entropy of the experts' shares over that of even ones: 1 where all are chosen alike, 0 where one takes all."""
    total = sum(load)
    shares = [count / total for count in load if count]
    return -sum(share * math.log(share) for share in shares) / math.log(len(load)) if len(load) > 1 and total else 0.0


def dead(load: Sequence[int]) -> list[int]:
    """Experts that were never chosen, where that can't be chance: with choices enough for `EVEN_CHOICES` each."""
    return [expert for expert, count in enumerate(load) if not count] if enough(load) else []


def overloaded(load: Sequence[int]) -> list[int]:
    """Experts with at least `OVERLOADED` times the even share."""
    even = sum(load) / len(load)
    return [expert for expert, count in enumerate(load) if even and count >= OVERLOADED * even]


def dominant_group(load: Sequence[int], group: int) -> int | None:
    """The group of `group` neighbouring experts that has taken over, if one has and there are at least four."""
    totals = [sum(load[first : first + group]) for first in range(0, len(load), group)]
    largest = max(range(len(totals)), key=totals.__getitem__)
    return largest if len(totals) >= 4 and totals[largest] >= DOMINANT * sum(totals) > 0 else None


def enough(load: Sequence[int]) -> bool:
    """Whether there were choices enough to call an expert dead."""
    return sum(load) >= EVEN_CHOICES * len(load)
