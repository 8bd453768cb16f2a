"""How often tokens of each kind go to each expert, counted while a model computes. Knows routers; what kinds are, others say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.models.aria.modeling_aria import AriaTextTopKRouter


class RoutingCounts:
    """Counts of one way of computing a model, such as with an adapter or without.

    Args:
        model: an Aria, bare or with adapters.
        kinds: how many kinds of tokens there are.

    Attributes:
        load_LKE: int64 (layers, kinds, experts) on the device: choices of an expert by tokens of a kind.
    """

    def __init__(self, model: nn.Module, kinds: int) -> None:
        self._routers = [module for module in model.modules() if isinstance(module, AriaTextTopKRouter)]
        self._kinds = kinds
        device = self._routers[0].weight.device
        self._experts = len(self._routers[0].weight)
        self.load_LKE = torch.zeros(len(self._routers), kinds, self._experts, dtype=torch.int64, device=device)

    @contextmanager
    def counting(self, kinds_T: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Count a forward of these tokens.

        Args:
            kinds_T: int64 (tokens,), the kind of each token in the order in which the router sees them; below 0 for tokens that
                don't count, such as padding.

        Yields:
            A list that holds, after the forward, the sets of experts of each layer: (tokens, top_k), sorted.
        """
        chosen: list[torch.Tensor] = []
        real_T = kinds_T >= 0
        rows_T = kinds_T.clamp_min(0) * self._experts

        def count(layer: int, index_TK: torch.Tensor) -> None:
            places_TK = rows_T[:, None] + index_TK
            weights_TK = real_T.long()[:, None].expand_as(index_TK)
            self.load_LKE[layer].view(-1).scatter_add_(0, places_TK.flatten(), weights_TK.flatten())
            chosen.append(index_TK.sort(-1).values)

        hooks = [
            router.register_forward_hook(lambda _, __, output, layer=layer: count(layer, output[2]))
            for layer, router in enumerate(self._routers)
        ]
        try:
            yield chosen
        finally:
            for hook in hooks:
                hook.remove()
