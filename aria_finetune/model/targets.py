"""Where adapters may sit: the parts of Aria that `lora.targets` names, and the names of their weights.

The one table of it; PEFT's configuration, the names in an adapter file and the planner's counts follow from it. Knows names
only, neither torch nor PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Target = Literal["attention", "router", "shared_experts", "experts", "projector", "vision"]
DECODER_LAYER = "model.language_model.layers.{layer}"
TOWER_LAYER = "model.vision_tower.encoder.layers.{layer}"
PROJECTOR = "model.multi_modal_projector"
_ANY_LAYER = r"\d+"


@dataclass(frozen=True)
class Place:
    """The weights of a target.

    Attributes:
        linears: modules, by their names in a layer; PEFT finds them by a regular expression, and an adapter file has their
            pairs under the same names.
        parameters: bare parameters, by their names in a layer, and what an adapter file calls their pairs; PEFT finds
            them by their names (`target_parameters`).
        layer: the name of a layer, or of a part that has none.
        dropout: whether its adapters have dropout.
    """

    linears: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    layer: str = DECODER_LAYER
    dropout: bool = True

    @property
    def weights(self) -> frozenset[str]:
        """Names in a layer of the weights that adapters change."""
        return frozenset((*(f"{name}.weight" for name in self.linears), *self.parameters))

    def pattern(self, layers: Sequence[int] | None) -> str | None:
        """A regular expression of the linears in some layers, or in all; bare names would hit other parts of Aria too."""
        if not self.linears:
            return None
        number = _ANY_LAYER if layers is None else f"({'|'.join(map(str, layers))})"
        start = re.escape(self.layer).replace(re.escape("{layer}"), number)
        return rf"{start}\.({'|'.join(map(re.escape, self.linears))})"

    def parameter_names(self, layers: Sequence[int] | None) -> Iterator[str]:
        """Names of the parameters in some layers; or the end that those names have in all of them."""
        for name in self.parameters:
            if layers is None:
                yield name
            else:
                yield from (f"{self.layer.format(layer=layer)}.{name}" for layer in layers)

    def pairs(self, layers: Iterable[int]) -> Iterator[str]:
        """What an adapter file calls the pairs in some layers, without PEFT's own prefix."""
        named = (self.layer.format(layer=layer) for layer in layers) if "{layer}" in self.layer else (self.layer,)
        for layer in named:
            for name in (*self.linears, *self.parameters.values()):
                yield f"{layer}.{name}"


_FEED_FORWARD = ("feed_forward.linear_in", "feed_forward.linear_out")
PLACES: Mapping[Target, Place] = {
    "attention": Place(linears=tuple(f"self_attn.{side}_proj" for side in "qkvo")),
    "router": Place(parameters={"mlp.router.weight": "mlp.router"}, dropout=False),
    "shared_experts": Place(linears=tuple(f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down"))),
    # Two parameters of one module: PEFT wraps the second around the first.
    "experts": Place(
        parameters={"mlp.experts.gate_up_proj": "mlp.experts.base_layer", "mlp.experts.down_proj": "mlp.experts"},
        dropout=False,
    ),
    # Without the projections inside of nn.MultiheadAttention, which multiplies by their weights without calling a module: the
    # linears before them and behind them change the same products.
    "projector": Place(
        linears=(*(f"cross_attn.{side}_proj" for side in "qkv"), "cross_attn.linear", *_FEED_FORWARD),
        layer=PROJECTOR,
        dropout=False,
    ),
    "vision": Place(
        linears=(*(f"self_attn.{side}_proj" for side in "qkv"), "self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
        layer=TOWER_LAYER,
        dropout=False,
    ),
}
SEEING: frozenset[Target] = frozenset({"projector", "vision"})
"""With any of these among the targets, image features change with every update."""


def linear_pattern(
    targets: Iterable[Target], layers: Sequence[int] | None = None, tower: Sequence[int] | None = None
) -> str | None:
    """A regular expression of all linears of some targets, None where there are none.

    `layers` are those of the decoder that are meant, `tower` those of the vision tower, None all of them.
    """
    places = (PLACES[target] for target in targets)
    patterns = [
        pattern for place in places if (pattern := place.pattern(tower if place.layer == TOWER_LAYER else layers))
    ]
    return "|".join(patterns) or None


def parameter_names(targets: Iterable[Target], layers: Sequence[int] | None = None) -> list[str]:
    """The names, or their ends, by which PEFT finds the bare parameters of some targets."""
    return [name for target in targets for name in PLACES[target].parameter_names(layers)]


def pair_names(targets: Iterable[Target], layers: Iterable[int], tower: Iterable[int]) -> Iterator[str]:
    """What an adapter file calls the pairs of some targets in layers of decoder and vision tower, without PEFT's own prefix."""
    layers, tower = list(layers), list(tower)
    for place in (PLACES[target] for target in targets):
        yield from place.pairs(tower if place.layer == TOWER_LAYER else layers)


def weight_names(targets: Iterable[Target]) -> frozenset[str]:
    """Names in a decoder layer of the weights that adapters on some targets change."""
    places = (PLACES[target] for target in targets)
    return frozenset[str]().union(*(place.weights for place in places if place.layer == DECODER_LAYER))


def seeing_weight_names(targets: Iterable[Target], tower: Iterable[int]) -> frozenset[str]:
    """Names in Aria of the weights of tower and projector that adapters on some targets change."""
    seeing = [target for target in targets if target in SEEING]
    return frozenset(f"{pair}.weight" for pair in pair_names(seeing, (), tower))
