"""Memory for weights that are dense only while they are used, shared by all layers and models of a process.

One run of memory for each device and dtype, as large as the largest wish so far. What is in it counts only until the next
`take`, so who takes it must be done before anybody else comes: a layer's experts are, for kernels of one stream come one after
the other. It is given back when the last module that has a share of it is gone. Knows nothing of what is put into it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

_SHARE = "shared_workspace"
"""The attribute of a module that has a share."""


class Workspace:
    """Memory on one device, of one dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._held = torch.empty(0, device=device, dtype=dtype)

    def take(self, *shape: int) -> torch.Tensor:
        """A tensor of this shape, its values anything."""
        count = torch.Size(shape).numel()
        if self._held.numel() < count:
            device, dtype = self._held.device, self._held.dtype
            self._held = torch.empty(0, device=device, dtype=dtype)  # first gone, so that both are never there
            # A tensor that generation made in inference mode could not be written to in training.
            with torch.inference_mode(mode=False):
                self._held = torch.empty(count, device=device, dtype=dtype)
        return self._held[:count].view(shape)

    @property
    def bytes(self) -> int:
        """How large it is."""
        return self._held.nbytes

    def __deepcopy__(self, _: dict[int, Any]) -> Workspace:
        """A copy of a module has a share of the same."""
        return self


_WORKSPACES: WeakValueDictionary[tuple[torch.device, torch.dtype], Workspace] = WeakValueDictionary()


def workspace_of(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Workspace:
    """The one for a device and a dtype, which lives at least until the module is gone or asks for another."""
    workspace = _WORKSPACES.get((device, dtype))
    if workspace is None:
        workspace = _WORKSPACES[device, dtype] = Workspace(device, dtype)
    setattr(module, _SHARE, workspace)
    return workspace
