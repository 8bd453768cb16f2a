"""What all routers of a model are asked for beside routing, and what they were seen to do.

One `RoutingWatch` is shared by the layers of a model: it gives the losses of their routers a part in the backward of a micro-batch,
and counts where tokens went. Knows routers, not trainers, recipes or rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from aria_finetune.model.router import Float32RoutedLayer
from aria_finetune.model.routing_losses import LossWeights, balance_loss, with_loss, z_loss

BALANCE, Z, CHANGED = range(3)
"""Columns of what is added up by layer."""


@dataclass(frozen=True)
class RoutingReport:
    """What routers did since the last report; a list has an entry for each layer.

    Attributes:
        tokens: real tokens that were routed.
        load: by layer and expert, how often an expert was chosen.
        balance: the balance loss, without its coefficient, as the mean over tokens.
        z: the same of the z-loss.
        changed: share of tokens whose set of experts is another than the router's without its adapter.
        drift: norm of the change of the router's weight over the norm of the weight.
    """

    tokens: int
    load: list[list[int]]
    balance: list[float]
    z: list[float]
    changed: list[float]
    drift: list[float]


class RoutingWatch:
    """Watches the routers of an Aria with `Float32RoutedLayer`s, bare or with adapters.

    Args:
        model: its layers are told of this watch.
        losses: what routers are trained on beside the language loss.

    Raises:
        ValueError: groups of such a size don't make up the experts.
    """

    def __init__(self, model: nn.Module, losses: LossWeights) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, Float32RoutedLayer)]
        self._experts = int(self._layers[0].experts.config.moe_num_experts)
        if self._experts % losses.group:
            raise ValueError(f"{self._experts} experts can't be split into groups of {losses.group}")
        self.losses = losses
        self._real_T: torch.Tensor | None = None
        self._share = 0.0
        self._recording = False
        self._tokens_now = 0
        for number, layer in enumerate(self._layers):
            layer.watch = LayerWatch(self, number)
        self._forget()

    @contextmanager
    def recording(self, real_BS: torch.Tensor | None, tokens: int, share: float) -> Iterator[None]:
        """The forward of a micro-batch: what routers do in it counts, and their losses take part in its backward.

        The backward belongs after the block, where layers may run again and count no more.

        Args:
            real_BS: (batch, tokens), 1 for a real token and 0 for padding; None where all are real.
            tokens: how many are real.
            share: of the optimizer step's real tokens. The losses of a micro-batch are means over its tokens, those of a
                step the means over all tokens of the step.
        """
        self._real_T = None if real_BS is None else real_BS.flatten()
        self._share, self._tokens_now, self._recording = share, tokens, True
        self._tokens += tokens
        try:
            yield
        finally:
            self._recording = False

    def see(
        self,
        layer: int,
        tokens_TH: torch.Tensor,
        logits_TE: torch.Tensor,
        weights_TK: torch.Tensor,
        index_TK: torch.Tensor,
    ) -> torch.Tensor:
        """Called by a layer that is in training when it has routed; gives the routing weights it is to use."""
        trained = any(parameter.requires_grad for parameter in self._layers[layer].router.parameters())
        balance, z = (self.losses.balance, self.losses.z) if trained else (0.0, 0.0)
        if not (self._recording or balance or z):
            return weights_TK
        with torch.no_grad():
            load_E = self._count(index_TK)
            if self._recording:
                self._load_LE[layer] += load_E
                self._sums_L3[layer, CHANGED] += self._changed(layer, tokens_TH, index_TK)
        losses = (
            (BALANCE, balance, partial(balance_loss, logits_TE, load_E, self._real_T, self.losses.group)),
            (Z, z, partial(z_loss, logits_TE, self._real_T)),
        )
        for column, coefficient, compute in losses:
            if not (coefficient or self._recording):
                continue
            # What is only looked at must leave nothing for the backward: a checkpointed layer's second forward does not look.
            with torch.set_grad_enabled(coefficient > 0):
                loss = compute()
            if self._recording:
                self._sums_L3[layer, column] += loss.detach() * self._tokens_now
            if coefficient:
                weights_TK = with_loss(weights_TK, loss, coefficient * self._share)
        return weights_TK

    def _count(self, index_TK: torch.Tensor) -> torch.Tensor:
        """How often each expert was chosen by a real token, int64 (experts,); without a wait for the GPU."""
        ones_TK = (
            torch.ones_like(index_TK) if self._real_T is None else self._real_T.long()[:, None].expand_as(index_TK)
        )
        return index_TK.new_zeros(self._experts).scatter_add_(0, index_TK.flatten(), ones_TK.flatten())

    def _changed(self, layer: int, tokens_TH: torch.Tensor, index_TK: torch.Tensor) -> torch.Tensor:
        """How many real tokens the router's adapter sends to another set of experts."""
        router = self._layers[layer].router
        if not isinstance(router, LoraLayer):
            return torch.zeros((), device=index_TK.device)
        stored_EH = router.get_base_layer().weight
        with torch.autocast(tokens_TH.device.type, enabled=False):
            before_TE = functional.linear(tokens_TH.float(), stored_EH.float())
        before_TK = before_TE.topk(index_TK.shape[-1], dim=-1).indices
        other_T = (before_TK.sort(-1).values != index_TK.sort(-1).values).any(-1)
        return (other_T if self._real_T is None else other_T & self._real_T.bool()).sum()

    @property
    def tokens(self) -> int:
        """Real tokens since the last report."""
        return self._tokens

    def report(self) -> RoutingReport:
        """What was seen since the last one."""
        sums_L3 = (self._sums_L3 / max(self._tokens, 1)).cpu()
        balance, z, changed = (sums_L3[:, column].tolist() for column in (BALANCE, Z, CHANGED))
        drift = [router_drift(layer.router) for layer in self._layers]
        report = RoutingReport(self._tokens, self._load_LE.tolist(), balance, z, changed, drift)
        self._forget()
        return report

    def _forget(self) -> None:
        device = next(self._layers[0].router.parameters()).device
        self._load_LE = torch.zeros(len(self._layers), self._experts, dtype=torch.int64, device=device)
        self._sums_L3 = torch.zeros(len(self._layers), 3, dtype=torch.float64, device=device)
        self._tokens = 0

    def state(self) -> dict[str, Any]:
        """What was seen since the last report, as JSON values."""
        return {"tokens": self._tokens, "load": self._load_LE.tolist(), "sums": self._sums_L3.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._tokens = state["tokens"]
        self._load_LE.copy_(torch.tensor(state["load"]))
        self._sums_L3.copy_(torch.tensor(state["sums"], dtype=torch.float64))


def router_drift(router: nn.Module) -> float:
    """Norm of what a router's adapter adds to its weight over the norm of the weight; 0 without an adapter."""
    if not isinstance(router, LoraLayer):
        return 0.0
    with torch.no_grad():
        added = sum(router.get_delta_weight(adapter).float() for adapter in router.active_adapters)
        stored = router.get_base_layer().weight.float()
        return float(torch.as_tensor(added).norm() / stored.norm())


@dataclass(frozen=True)
class LayerWatch:
    """The watch as one layer knows it."""

    watch: RoutingWatch
    layer: int

    def see(self, *seen: torch.Tensor) -> torch.Tensor:
        """Tokens, logits, weights and indices of the layer's router; the weights it is to use."""
        return self.watch.see(self.layer, *seen)
