"""Bytes of the parts of a model, against counts made from the checkpoint's headers and the NF4 format."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from aria_finetune.model.components import components
from aria_finetune.model.loading import Experts, load_model
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.model.parts import Component, part_of

PARTS = {
    "routed experts": "mlp.experts",
    "shared experts": "mlp.shared_experts",
    "attention": "language_model.model.layers.N.self_attn",
    "router": "mlp.router",
    "embedding": "embed_tokens",
    "lm_head": "lm_head",
    "vision tower": "vision_tower",
    "projector": "multi_modal_projector",
}
FP32_TABLES = (16 + 256 + 1) * 4
"""Of one NF4 tensor: the 16 values, the 256 levels of the scales, and their mean."""


def stored_weights(folder: Path) -> dict[str, list[int]]:
    """Sizes of the checkpoint's tensors by the part of Aria they belong to."""
    sizes: dict[str, list[int]] = {}
    with safe_open(folder / "model.safetensors", "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            plain = ".".join("N" if piece.isdigit() else piece for piece in name.split("."))
            part = next((part for part, mark in PARTS.items() if mark in plain), "norms and buffers")
            sizes.setdefault(part, []).append(math.prod(opened.get_slice(name).get_shape()))
    return sizes


def nf4_bytes(weights: int) -> int:
    """Half a byte each, a byte per 64 for the scale, four per 256 scales for theirs, and the tables."""
    blocks = weights // 64
    return weights // 2 + blocks + 4 * math.ceil(blocks / 256) + FP32_TABLES


def found(folder: Path, experts: Experts, dtype: torch.dtype) -> dict[str, Component]:
    rows = load_model(str(folder), experts=experts, dtype=dtype).components
    assert [row.bytes for row in rows] == sorted((row.bytes for row in rows), reverse=True)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


@pytest.mark.parametrize(("experts", "dtype", "size"), [("bf16", torch.bfloat16, 2), ("fp32", torch.float32, 4)])
def test_a_dense_model(tiny_folder: Path, experts: Experts, dtype: torch.dtype, size: int) -> None:
    rows, stored = found(tiny_folder, experts, dtype), stored_weights(tiny_folder)
    assert set(rows) == set(stored) == {*PARTS, "norms and buffers"}
    for part, weights in stored.items():
        assert rows[part].parameters == sum(weights), part
    for part in set(PARTS) - {"router"}:
        assert rows[part].bytes == size * sum(stored[part]), part
        assert rows[part].dtype == str(dtype).removeprefix("torch."), part
    assert rows["router"].bytes == 4 * sum(stored["router"])
    assert rows["router"].dtype == "float32"


def test_all_bytes_are_counted_once(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder), experts="bf16").model
    tensors = dict(model.state_dict(keep_vars=True))
    # not in the state dict: the RoPE frequencies and transformers' copy of them, 8 of each for 16 per head
    rope = 2 * 8 * 4
    assert sum(row.bytes for row in components(model)) == rope + sum(
        tensor.numel() * tensor.element_size() for tensor in tensors.values()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_4_bit_parts_count_their_scales(tiny_folder: Path, dtype: torch.dtype) -> None:
    rows, stored = found(tiny_folder, "nf4", dtype), stored_weights(tiny_folder)
    for part in ("routed experts", "shared experts", "attention"):
        assert rows[part].bytes == sum(nf4_bytes(weights) for weights in stored[part]), part
        assert rows[part].parameters == sum(stored[part]), part
        assert rows[part].dtype == "nf4"
    size = 2 if dtype == torch.bfloat16 else 4
    for part in ("vision tower", "projector", "embedding", "lm_head"):
        assert rows[part].bytes == size * sum(stored[part]), part
        assert rows[part].dtype == str(dtype).removeprefix("torch.")


def test_the_adapter_is_a_part_of_its_own(tiny_folder: Path) -> None:
    loaded = load_model(str(tiny_folder))
    adapted = add_lora(loaded.model, LoraPlan(rank=4), base_name="tiny", seed=0)
    rows = {row.name: row for row in components(adapted)}
    weights = 2 * 5 * 4 * (64 + 64)  # layers x modules x rank x (in + out)
    assert rows.pop("adapter") == Component("adapter", weights, "float32", 4 * weights)
    assert rows == {row.name: row for row in loaded.components}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.language_model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.language_model.layers.3.mlp.experts.gate_up_proj", "routed experts"),
        ("model.language_model.layers.3.mlp.experts.parametrizations.down_proj.original", "routed experts"),
        ("model.language_model.layers.3.mlp.shared_experts.up_proj.weight", "shared experts"),
        ("model.language_model.layers.3.mlp.router.weight", "router"),
        ("model.language_model.layers.3.input_layernorm.weight", "norms and buffers"),
        ("model.language_model.norm.weight", "norms and buffers"),
        ("model.language_model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "lm_head"),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj.weight", "vision tower"),
        ("model.multi_modal_projector.cross_attn.q_proj.weight", "projector"),
        ("base_model.model.model.language_model.layers.0.mlp.router.lora_A.default.weight", "adapter"),
        ("base_model.model.model.language_model.layers.0.mlp.router.base_layer.weight", "router"),
    ],
)
def test_names(name: str, part: str) -> None:
    assert part_of(name) == part
