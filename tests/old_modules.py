"""Aria's mixture of experts as its modules were up to transformers 5.17: the router a linear, each stack of experts a module.

Written from the description of that layout, to put in the place of today's modules, so that PEFT finds what it found there.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AriaForConditionalGeneration
from transformers.models.aria.modeling_aria import AriaTextMoELayer


class Stack(nn.Module):
    """One matrix for each expert."""

    def __init__(self, weight_EIO: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_EIO)

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """Through one of them."""
        return x @ self.weight[expert]


class Experts(nn.Module):
    """Both stacks, and the choice of experts by the router's logits."""

    def __init__(self, fc1: torch.Tensor, fc2: torch.Tensor, top_k: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.top_k = Stack(fc1), Stack(fc2), top_k

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the chosen ones. PEFT adapts a module's parameter while that module runs: each runs once for all."""
        best, chosen = logits.topk(self.top_k, dim=-1)
        shares = best.softmax(-1)
        stack1, stack2 = self.fc1, self.fc2
        inner = stack1(x[None], slice(None))  # (E, T, 2 I)
        gate, up = inner.chunk(2, -1)
        outer = stack2(nn.functional.silu(gate) * up, slice(None))  # (E, T, H)
        weights = torch.zeros_like(logits).scatter(-1, chosen, shares)
        return torch.einsum("te,eth->th", weights, outer)


class Layer(nn.Module):
    """Router, routed experts and shared experts."""

    def __init__(self, now: AriaTextMoELayer) -> None:
        super().__init__()
        experts, hidden = now.router.weight.shape
        self.router = nn.Linear(hidden, experts, bias=False)
        self.router.weight = nn.Parameter(now.router.weight.data)
        self.experts = Experts(now.experts.gate_up_proj.data, now.experts.down_proj.data, now.router.top_k)
        self.shared_experts = now.shared_experts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H) to the same."""
        flat = x.view(-1, x.shape[-1])
        return self.experts(flat, self.router(flat)).view(x.shape) + self.shared_experts(x)


def as_old(model: AriaForConditionalGeneration) -> AriaForConditionalGeneration:
    """The same model with those modules."""
    for layer in model.model.language_model.layers:
        layer.mlp = Layer(layer.mlp)
    return model
