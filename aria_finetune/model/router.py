"""The router in fp32: its weight, its logits and its softmax, whatever autocast says.

The paper routes in fp32 (arXiv 2410.05993). In bf16, PEFT's `W + delta` for the router would lose a third of
a delta with standard deviation 1e-4. Knows nothing of the experts behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers.models.aria.modeling_aria import AriaTextDecoderLayer, AriaTextMoELayer, AriaTextTopKRouter

from aria_finetune.model.shared_experts import start


class Float32Router(AriaTextTopKRouter):  # type: ignore[misc]
    """Aria's top-k router whose arithmetic is fp32 outside autocast."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Route tokens.

        Args:
            hidden_states: (tokens, hidden), any float dtype.

        Returns:
            Logits (tokens, experts) in fp32, weights (tokens, top_k) in the dtype of `hidden_states`, which is
            what the experts compute in, and expert indices (tokens, top_k), int64.
        """
        with torch.autocast(device_type=hidden_states.device.type, enabled=False):
            logits_TE = functional.linear(hidden_states.float(), self.weight.float())
            top_logits_TK, index_TK = torch.topk(logits_TE, self.top_k, dim=-1)
            weights_TK = functional.softmax(top_logits_TK, dim=-1)
        return logits_TE, weights_TK.to(hidden_states.dtype), index_TK


class Watch(Protocol):
    """Who looks at what a layer's router does in training."""

    def see(
        self, tokens_TH: torch.Tensor, logits_TE: torch.Tensor, weights_TK: torch.Tensor, index_TK: torch.Tensor
    ) -> torch.Tensor:
        """The routing weights that the layer is to use: those it was shown, whatever else comes back through them."""
        ...


class Float32RoutedLayer(AriaTextMoELayer):  # type: ignore[misc]
    """Aria's mixture of experts with everything about its routing outside autocast.

    An adapter wraps the router and computes its change of the weight before the router runs, so that the router's
    own care would come too late for it.

    Attributes:
        watch: is shown every routing in training, if it is not None.
    """

    watch: Watch | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Route and compute; (batch, tokens, hidden) in and out."""
        tokens_TH = hidden_states.view(-1, hidden_states.shape[-1])
        with torch.autocast(device_type=hidden_states.device.type, enabled=False):
            logits_TE, weights_TK, index_TK = self.router(tokens_TH)
            if self.watch is not None and self.training and torch.is_grad_enabled():
                weights_TK = self.watch.see(tokens_TH, logits_TE, weights_TK, index_TK)
        # Before the routed experts, which with what follows are what a checkpointed layer's second forward need not come to.
        shared = start(self.shared_experts, hidden_states)
        routed: torch.Tensor = self.experts(tokens_TH, index_TK, weights_TK).view(hidden_states.shape)
        return routed + shared()


def install_float32_routers(model: nn.Module, read_weight: Callable[[int], torch.Tensor]) -> None:
    """Replace every router of `model` by a `Float32Router`, in a layer that calls it outside autocast.

    Args:
        model: an `AriaForConditionalGeneration`.
        read_weight: gives the stored weight (experts, hidden) of a decoder layer by its index. It is read again
            because the model may have been loaded in a narrower dtype than the checkpoint's.
    """
    layers = [module for module in model.modules() if isinstance(module, AriaTextDecoderLayer)]
    for index, layer in enumerate(layers):
        old = layer.mlp
        with torch.device("meta"):
            routed = Float32RoutedLayer(old.experts.config)
            routed.router = Float32Router(old.experts.config)
        weight = read_weight(index).to(old.router.weight.device, torch.float32)
        routed.router.weight = nn.Parameter(weight, requires_grad=False)
        routed.experts, routed.shared_experts = old.experts, old.shared_experts
        layer.mlp = routed.train(old.training)
