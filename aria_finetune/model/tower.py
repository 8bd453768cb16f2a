"""The forward of the vision tower and the projector, over transformers' own modules.

Tiles of one shape go through together and have no padding, so that no attention has a mask: whoever calls leaves padded
patches out, which no other patch and no query would have looked at. transformers' forward spells a mask out for every pair of
patches, keeps the hidden states of all layers to the end, and writes down how every query weighs every patch. What lies before the
first adapter that is trained has no gradient, and without one nothing has. Knows nothing of where adapters are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.aria.modeling_aria import AriaModel, AriaProjector
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3EncoderLayer,
    Idefics3VisionAttention,
    Idefics3VisionTransformer,
)

CPU_ROWS = 1225
"""Patches in the feed-forward of a layer at a time on a CPU: with more none takes less time, and what is between its two
products, four times as wide as a layer, takes memory for all. A GPU has more to do at once with all of them."""


def encode(aria: AriaModel, pixels_N3HW: torch.Tensor, queries: int) -> torch.Tensor:
    """Projected features of tiles; in the graph where gradients are asked for and an adapter of tower or projector is trained.

    Args:
        aria: the model with the tower and the projector, whose weights may have another dtype than the pixels: they are
            converted a module at a time, at most the feed-forward of a layer (40 MB in fp32 for the real Aria).
        pixels_N3HW: normalised; of whole patches, none of which is padding. In their dtype all is computed, adapters aside.
        queries: image tokens of a tile.

    Returns:
        (N, queries, hidden of the decoder) in the dtype of the pixels.
    """
    tower, projector = aria.vision_tower, aria.multi_modal_projector
    numbers = used_layers(len(tower.encoder.layers), aria.config.vision_feature_layer)
    layers: list[Idefics3EncoderLayer] = [tower.encoder.layers[number] for number in numbers]
    trained = [number for number, part in enumerate([*layers, projector]) if torch.is_grad_enabled() and _trains(part)]
    first = min(trained, default=len(layers) + 1)
    with torch.no_grad():
        hidden_NPE = _embedded(tower, pixels_N3HW)
        for layer in layers[:first]:
            hidden_NPE += _attention(layer, hidden_NPE)
            for rows_NRE in _pieces(hidden_NPE):
                rows_NRE.add_(_feed_forward(layer, rows_NRE))
    if not trained:
        with torch.no_grad():
            return _projected(projector, hidden_NPE, queries)
    hidden_NPE = hidden_NPE.detach()  # hooks that ask for gradients of inputs land on the embeddings
    again = any(layer.gradient_checkpointing and layer.training for layer in layers)
    for layer in layers[first:]:
        hidden_NPE = _in_graph(partial(_with_gradient, layer), hidden_NPE, again=again)
    return _in_graph(partial(_projected, projector, queries=queries), hidden_NPE, again=again)


def used_layers(layers: int, feature_layer: int) -> range:
    """Those before the hidden states of that number, where 0 are the embedded patches and -1 what the last layer gives."""
    return range(range(layers + 1)[feature_layer])


def _trains(part: nn.Module) -> bool:
    """Whether it has adapters that are trained; other weights never have a gradient here, whatever they ask for."""
    return any(parameter.requires_grad and "lora_" in name for name, parameter in part.named_parameters())


def _in_graph(
    function: Callable[[torch.Tensor], torch.Tensor], hidden_NPE: torch.Tensor, *, again: bool
) -> torch.Tensor:
    """`function` of the hidden states; `again` for its backward, which then keeps them alone."""
    if not again:
        return function(hidden_NPE)
    output: torch.Tensor = checkpoint(function, hidden_NPE, use_reentrant=False)
    return output


def _with_gradient(layer: Idefics3EncoderLayer, hidden_NPE: torch.Tensor) -> torch.Tensor:
    hidden_NPE = hidden_NPE + _attention(layer, hidden_NPE)
    return hidden_NPE + torch.cat([_feed_forward(layer, rows_NRE) for rows_NRE in _pieces(hidden_NPE)], dim=1)


def _embedded(tower: Idefics3VisionTransformer, pixels_N3HW: torch.Tensor) -> torch.Tensor:
    """(N, patches, width). Positions depend on how many rows and columns of patches there are, padding aside."""
    tiles, _, height, width = pixels_N3HW.shape
    shape = (tiles, height // tower.patch_size, width // tower.patch_size)
    seen = torch.ones(shape, dtype=torch.bool, device=pixels_N3HW.device)
    embedded: torch.Tensor = _ready(tower.embeddings, pixels_N3HW.dtype)(pixels_N3HW, seen)
    return embedded


def _attention(layer: Idefics3EncoderLayer, hidden_NPE: torch.Tensor) -> torch.Tensor:
    attention: Idefics3VisionAttention = layer.self_attn
    heads, dtype = attention.num_heads, hidden_NPE.dtype
    normed_NPE = _ready(layer.layer_norm1, dtype)(hidden_NPE)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query_NHPD, key_NHPD, value_NHPD = (_by_head(_ready(linear, dtype)(normed_NPE), heads) for linear in projections)
    seen_NPE = _seen(query_NHPD, key_NHPD, value_NHPD)
    del normed_NPE, query_NHPD, key_NHPD, value_NHPD
    output_NPE: torch.Tensor = _ready(attention.out_proj, dtype)(seen_NPE)
    return output_NPE


def _feed_forward(layer: Idefics3EncoderLayer, rows_NRE: torch.Tensor) -> torch.Tensor:
    norm, feed_forward = _ready(layer.layer_norm2, rows_NRE.dtype), _ready(layer.mlp, rows_NRE.dtype)
    output_NRE: torch.Tensor = feed_forward(norm(rows_NRE))
    return output_NRE


def _pieces(hidden_NPE: torch.Tensor) -> Sequence[torch.Tensor]:
    """Rows that go through a feed-forward together."""
    step = CPU_ROWS if hidden_NPE.device.type == "cpu" else hidden_NPE.shape[1]
    return torch.split(hidden_NPE, step, dim=1)


def _projected(projector: AriaProjector, hidden_NPE: torch.Tensor, queries: int) -> torch.Tensor:
    """The first `queries` of the projector look at all patches."""
    cross, dtype = projector.cross_attn, hidden_NPE.dtype
    inner: nn.MultiheadAttention = cross.multihead_attn
    weights, biases = inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3)

    def projected(rows_NRE: torch.Tensor, linear: nn.Module, number: int) -> torch.Tensor:
        outer_NRE = _ready(linear, dtype)(rows_NRE)
        inner_NRE = functional.linear(outer_NRE, weights[number].to(dtype), biases[number].to(dtype))
        return _by_head(inner_NRE, inner.num_heads)

    query_1QE = _ready(cross.layer_norm, dtype)(projector.query[:queries].to(dtype))[None]
    query_NHQD = projected(query_1QE, cross.q_proj, 0).expand(len(hidden_NPE), -1, -1, -1)
    normed_NPE = _ready(cross.layer_norm_kv, dtype)(hidden_NPE)
    key_NHPD, value_NHPD = projected(normed_NPE, cross.k_proj, 1), projected(normed_NPE, cross.v_proj, 2)
    features_NQE = _seen(query_NHQD, key_NHPD, value_NHPD)
    for module in (inner.out_proj, cross.linear, projector.layer_norm, projector.feed_forward):
        features_NQE = _ready(module, dtype)(features_NQE)
    return features_NQE


def _by_head(rows_NRE: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, heads, R, E / heads). The kernel for CPUs takes 7% less time where the rows of a head lie one behind the other."""
    return rows_NRE.view(*rows_NRE.shape[:2], heads, -1).transpose(1, 2).contiguous()


def _seen(query_NHQD: torch.Tensor, key_NHPD: torch.Tensor, value_NHPD: torch.Tensor) -> torch.Tensor:
    """What every query sees of all patches, (N, Q, E)."""
    return functional.scaled_dot_product_attention(query_NHQD, key_NHPD, value_NHPD).transpose(1, 2).flatten(2)


def _ready(module: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    """`module`; if its weights are of another dtype, `module` with converted ones, for as long as what is returned is there.

    Adapters stay as they are: what is trained is fp32, and PEFT's layers convert their inputs.
    """
    weights = {name: weight for name, weight in module.named_parameters() if "lora_" not in name}
    if all(weight.dtype == dtype for weight in weights.values()):
        return module
    converted = {name: weight.to(dtype) for name, weight in weights.items()}
    return lambda *inputs: functional_call(module, converted, inputs)
