"""Aria's dimensions, and from them the name and shape of every weight, without making a module.

The names are those in memory of transformers 5.18 and newer (`models/aria/modeling_aria.py`). A test holds them against the
modules themselves. Knows nothing of how weights are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aria_finetune.errors import UserError

Shape = tuple[int, ...]
QUERIES = {1225: 128, 4900: 256}
"""Image tokens by patches of a tile, where config.json does not say."""

TEXT_DEFAULTS: dict[str, int] = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 2,
}  # fmt: skip
VISION_DEFAULTS: dict[str, int] = {
    "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 32, "num_channels": 3,
}  # fmt: skip
"""Of `AriaTextConfig` and `Idefics3VisionConfig`; they are not the real Aria's, whose config.json names its own."""


@dataclass(frozen=True)
class VisionTower:
    """The image encoder: `side` is the largest tile in pixels, `width` that of its feed-forward layers."""

    layers: int
    hidden: int
    width: int
    heads: int
    patch: int
    side: int
    channels: int = 3

    def patches(self, tile: int) -> int:
        """Patches of a square tile whose side is `tile` pixels."""
        return (tile // self.patch) ** 2


@dataclass(frozen=True)
class Architecture:
    """A decoder with its vision tower. `width` is that of one routed expert, `shared` how many experts all tokens take."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    width: int
    shared: int
    vocabulary: int
    vision: VisionTower
    tied: bool = False
    queries: Mapping[int, int] = field(default_factory=lambda: dict(QUERIES))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """The dimensions that a checkpoint's config.json gives; where it gives none, those of transformers' classes.

        Raises:
            UserError: one is no positive whole number; it is named.
        """
        text = _counts(config, "text_config", TEXT_DEFAULTS, ("num_key_value_heads", "head_dim"))
        vision = _counts(config, "vision_config", VISION_DEFAULTS)
        heads = text["num_attention_heads"]
        return cls(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads", heads),
            head_dim=text.get("head_dim", text["hidden_size"] // heads),
            experts=text["moe_num_experts"],
            top_k=text["moe_topk"],
            width=text["intermediate_size"],
            shared=text["moe_num_shared_experts"],
            vocabulary=text["vocab_size"],
            vision=VisionTower(
                layers=vision["num_hidden_layers"],
                hidden=vision["hidden_size"],
                width=vision["intermediate_size"],
                heads=vision["num_attention_heads"],
                patch=vision["patch_size"],
                side=vision["image_size"],
                channels=vision["num_channels"],
            ),
            tied=config.get("tie_word_embeddings") is True,
            queries=_queries(config.get("projector_patch_to_query_dict")),
        )

    @property
    def shared_width(self) -> int:
        """Width of the feed-forward layer that stands for all shared experts."""
        return self.width * self.shared

    def weights(self) -> Iterator[tuple[str, Shape]]:
        """Name in memory and shape of every weight; a tied lm_head is none."""
        yield from self._vision_tower()
        yield from self._projector()
        yield "model.language_model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, shape in self.decoder_layer():
                yield f"model.language_model.layers.{layer}.{name}", shape
        yield "model.language_model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    def decoder_layer(self) -> Iterator[tuple[str, Shape]]:
        """Name within it and shape of every weight of a decoder layer; linears are (out, in), experts (experts, in, out)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "self_attn.q_proj.weight", (queries, self.hidden)
        yield "self_attn.k_proj.weight", (keys, self.hidden)
        yield "self_attn.v_proj.weight", (keys, self.hidden)
        yield "self_attn.o_proj.weight", (self.hidden, queries)
        yield "mlp.router.weight", (self.experts, self.hidden)
        yield "mlp.experts.gate_up_proj", (self.experts, self.hidden, 2 * self.width)
        yield "mlp.experts.down_proj", (self.experts, self.width, self.hidden)
        yield "mlp.shared_experts.gate_proj.weight", (self.shared_width, self.hidden)
        yield "mlp.shared_experts.up_proj.weight", (self.shared_width, self.hidden)
        yield "mlp.shared_experts.down_proj.weight", (self.hidden, self.shared_width)
        yield "input_layernorm.weight", (self.hidden,)
        yield "post_attention_layernorm.weight", (self.hidden,)

    def _vision_tower(self) -> Iterator[tuple[str, Shape]]:
        tower = self.vision
        start, hidden = "model.vision_tower", tower.hidden
        yield f"{start}.embeddings.patch_embedding.weight", (hidden, tower.channels, tower.patch, tower.patch)
        yield f"{start}.embeddings.patch_embedding.bias", (hidden,)
        yield f"{start}.embeddings.position_embedding.weight", (tower.patches(tower.side), hidden)
        for layer in range(tower.layers):
            inside = f"{start}.encoder.layers.{layer}"
            for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
                yield from _linear(f"{inside}.self_attn.{name}", hidden, hidden)
            yield from _norm(f"{inside}.layer_norm1", hidden)
            yield from _linear(f"{inside}.mlp.fc1", tower.width, hidden)
            yield from _linear(f"{inside}.mlp.fc2", hidden, tower.width)
            yield from _norm(f"{inside}.layer_norm2", hidden)
        yield from _norm(f"{start}.post_layernorm", hidden)

    def _projector(self) -> Iterator[tuple[str, Shape]]:
        start, hidden = "model.multi_modal_projector", self.vision.hidden
        attention = f"{start}.cross_attn"
        yield f"{start}.query", (max(self.queries.values()), hidden)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield f"{attention}.{name}.weight", (hidden, hidden)
        yield f"{attention}.multihead_attn.in_proj_weight", (3 * hidden, hidden)
        yield f"{attention}.multihead_attn.in_proj_bias", (3 * hidden,)
        yield from _linear(f"{attention}.multihead_attn.out_proj", hidden, hidden)
        yield from _linear(f"{attention}.linear", hidden, hidden)
        yield from _norm(f"{attention}.layer_norm", hidden)
        yield from _norm(f"{attention}.layer_norm_kv", hidden)
        yield from _norm(f"{start}.layer_norm", hidden)
        yield f"{start}.feed_forward.linear_in.weight", (self.hidden, hidden)
        yield f"{start}.feed_forward.linear_out.weight", (self.hidden, self.hidden)


def _linear(name: str, out: int, into: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _norm(name: str, size: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _counts(
    config: Mapping[str, Any], section: str, defaults: Mapping[str, int], optional: tuple[str, ...] = ()
) -> dict[str, int]:
    written = config.get(section) or {}
    if not isinstance(written, Mapping):
        raise _odd(section, written)
    found = {**defaults, **{key: written[key] for key in (*defaults, *optional) if written.get(key) is not None}}
    for key, value in found.items():
        if type(value) is not int or value < 1:
            raise _odd(f"{section}.{key}", value)
    return found


def _queries(written: Any) -> dict[int, int]:
    if written is None:
        return dict(QUERIES)
    try:
        queries = {int(patches): int(count) for patches, count in written.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise _odd("projector_patch_to_query_dict", written) from error
    if not queries or min(*queries, *queries.values()) < 1:
        raise _odd("projector_patch_to_query_dict", written)
    return queries


def _odd(key: str, value: object) -> UserError:
    return UserError(
        f"{key} is {value!r}, which is no size of a model",
        where="config.json",
        fix="use the config.json of these weights",
    )
