"""What is merged has the names and shapes that transformers itself writes, and those that vLLM's Aria reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AriaForConditionalGeneration

from aria_finetune.adapter.merge import merge
from aria_finetune.model.hub_layout import open_checkpoint

NAMES = {
    *(
        f"language_model.model.layers.N.{name}.weight"
        for name in (
            "input_layernorm",
            "post_attention_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.router",
            "mlp.experts.fc1",
            "mlp.experts.fc2",
            "mlp.shared_experts.gate_proj",
            "mlp.shared_experts.up_proj",
            "mlp.shared_experts.down_proj",
        )
    ),
    "language_model.model.embed_tokens.weight",
    "language_model.model.norm.weight",
    "language_model.lm_head.weight",
    *(
        f"vision_tower.encoder.layers.N.{name}.{kind}"
        for name in (
            "layer_norm1",
            "layer_norm2",
            "mlp.fc1",
            "mlp.fc2",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
        )
        for kind in ("weight", "bias")
    ),
    "vision_tower.embeddings.patch_embedding.weight",
    "vision_tower.embeddings.patch_embedding.bias",
    "vision_tower.embeddings.position_embedding.weight",
    "vision_tower.post_layernorm.weight",
    "vision_tower.post_layernorm.bias",
    "multi_modal_projector.query",
    *(
        f"multi_modal_projector.{name}.{kind}"
        for name in (
            "layer_norm",
            "cross_attn.layer_norm",
            "cross_attn.layer_norm_kv",
            "cross_attn.linear",
            "cross_attn.multihead_attn.out_proj",
        )
        for kind in ("weight", "bias")
    ),
    "multi_modal_projector.cross_attn.multihead_attn.in_proj_weight",
    "multi_modal_projector.cross_attn.multihead_attn.in_proj_bias",
    *(f"multi_modal_projector.cross_attn.{side}_proj.weight" for side in "qkv"),
    "multi_modal_projector.feed_forward.linear_in.weight",
    "multi_modal_projector.feed_forward.linear_out.weight",
}
"""The hub layout as of rhymes-ai/Aria, layers numbered N. Both loaders were read: transformers 5.23, models/aria, and vLLM at commit
01e4fce, model_executor/models/aria.py, whose `hf_to_vllm_mapper` takes `language_model.model` and `language_model.lm_head` as prefixes and
`router.weight` as suffix, whose text model stacks `.q_proj .k_proj .v_proj .gate_proj .up_proj experts.fc1.weight experts.fc2.weight`, and whose
tower skips `post_layernorm`."""


@pytest.fixture
def merged(adapter: Path, tmp_path: Path) -> Path:
    merge(adapter, tmp_path / "merged")
    return tmp_path / "merged"


def test_names_are_those_of_the_hub(merged: Path) -> None:
    found = {re.sub(r"layers\.\d+\.", "layers.N.", name) for name in open_checkpoint(str(merged)).stored}
    assert found == NAMES


def test_transformers_writes_the_same(merged: Path, tmp_path: Path) -> None:
    AriaForConditionalGeneration.from_pretrained(merged, dtype="auto").save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in open_checkpoint(str(folder)).stored.items()}
        for folder in (merged, tmp_path / "theirs")
    )
    assert ours == theirs


def test_vllm_finds_a_place_for_every_name(merged: Path) -> None:
    """Its renaming, written out here from its source, leaves only parameters that its modules have."""
    stacked = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    text = stacked | {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
    due = {
        *(f"language_model.layers.N.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")),
        *(f"language_model.layers.N.self_attn.{name}.weight" for name in ("qkv_proj", "o_proj")),
        *(f"language_model.layers.N.mlp.shared_experts.{name}.weight" for name in ("gate_up_proj", "down_proj")),
        "language_model.layers.N.mlp.router_weight",
        "language_model.layers.N.mlp.experts.w13_weight",
        "language_model.layers.N.mlp.experts.w2_weight",
        "language_model.embed_tokens.weight",
        "language_model.norm.weight",
        "lm_head.weight",
    }
    found = set()
    for name in open_checkpoint(str(merged)).stored:
        if not name.startswith("language_model."):
            continue
        mapped = re.sub(r"^language_model\.model\b", "language_model", name)
        mapped = re.sub(r"^language_model\.lm_head\b", "lm_head", mapped)
        mapped = re.sub(r"router\.weight$", "router_weight", mapped)
        mapped = mapped.replace("experts.fc1.weight", "experts.w13_weight").replace(
            "experts.fc2.weight", "experts.w2_weight"
        )
        for one, all_of_them in text.items():
            mapped = mapped.replace(f".{one}.", f".{all_of_them}.")
        found.add(re.sub(r"layers\.\d+\.", "layers.N.", mapped))
    assert found == due
