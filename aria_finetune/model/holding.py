"""How the parts of Aria are held that can be held in more than one way. Knows names of parts, not how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aria_finetune.model.parts import Home, part_of


@dataclass(frozen=True)
class Holding:
    """The lm_head in 16 bit or NF4; the embedding and the NF4 experts on the device or in host memory.

    `experts_at_a_time` is how many experts of a layer are made dense together; all of them, if it is None.
    """

    lm_head: Literal["dense", "nf4"] = "dense"
    embedding: Home = "device"
    experts: Home = "device"
    experts_at_a_time: int | None = None

    def home(self, name: str, device: str) -> str:
        """The device that a parameter is held on, by its name in the model, where the rest of it is on `device`."""
        homes = {"routed experts": self.experts, "embedding": self.embedding}
        return "cpu" if homes.get(part_of(name)) == "host" else device
