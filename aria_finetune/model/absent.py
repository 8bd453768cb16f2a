"""Parts of an Aria that a run does without: no weight of them is read, and whoever calls one is told.

Knows which modules a part is. Knows nothing of when one can be left out.
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from torch import nn

Part = Literal["vision", "decoder"]
MODULES: dict[Part, tuple[str, ...]] = {
    "vision": ("model.vision_tower", "model.multi_modal_projector"),
    "decoder": ("model.language_model", "lm_head"),
}
"""Paths in an `AriaForConditionalGeneration`."""


class Absent(nn.Module):
    """Stands where a module was left out."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{self.path} was called, but this model was loaded without it")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(f"{self.path} has no {name}: this model was loaded without it") from error


def leave_out(model: nn.Module, part: Part) -> None:
    """Put an `Absent` in the place of each module of a part; their tensors are freed if nobody else holds them."""
    for path in MODULES[part]:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, Absent(path))
