"""Shapes from a configuration alone are those of the modules that transformers makes of it."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AriaConfig

from aria_finetune.errors import UserError
from aria_finetune.model.filling import empty_aria
from aria_finetune.planner.architecture import Architecture
from aria_finetune.tiny import CHECKPOINT


def tiny(**text: object) -> AriaConfig:
    config = AriaConfig.from_pretrained(CHECKPOINT)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return config


def real() -> AriaConfig:
    """The real Aria's, as its config.json has it."""
    return AriaConfig(
        text_config={
            "vocab_size": 100_352, "hidden_size": 2560, "intermediate_size": 1664, "num_hidden_layers": 28,
            "num_attention_heads": 20, "num_key_value_heads": 20, "moe_num_experts": 64, "moe_topk": 6,
            "moe_num_shared_experts": 2,
        },
        vision_config={
            "model_type": "idefics3_vision", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "image_size": 980, "patch_size": 14,
        },
        projector_patch_to_query_dict={1225: 128, 4900: 256},
    )  # fmt: skip


@pytest.mark.parametrize("config", [tiny(), tiny(num_key_value_heads=2), tiny(moe_num_shared_experts=3), real()])
def test_names_and_shapes_of_all_weights(config: AriaConfig) -> None:
    with torch.device("meta"):
        model = empty_aria(config, torch.bfloat16, attention="sdpa", experts={"text_config": "eager"})
    due = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert dict(Architecture.from_config(config.to_dict()).weights()) == due


def test_the_real_size() -> None:
    architecture = Architecture.from_config(real().to_dict())
    sizes = [torch.Size(shape).numel() for _, shape in architecture.weights()]
    assert sum(sizes) == 25_307_311_216


def test_a_tied_head_is_counted_once() -> None:
    config = tiny()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    names = [name for name, _ in Architecture.from_config(config.to_dict()).weights()]
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
def test_what_a_config_leaves_out_is_what_transformers_takes(section: str) -> None:
    written = real().to_dict()
    keys = [key for key, value in written[section].items() if isinstance(value, int) and not isinstance(value, bool)]
    for key in keys:
        if key == "hidden_size" and section == "text_config":
            continue  # transformers refuses its default beside 20 heads
        shorter = {**written, section: {name: value for name, value in written[section].items() if name != key}}
        due = Architecture.from_config(AriaConfig(**shorter).to_dict())
        assert Architecture.from_config(shorter) == due, key


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_config": {"num_hidden_layers": "28"}}, "text_config.num_hidden_layers is '28'"),
        ({"text_config": {"moe_num_experts": 0}}, "text_config.moe_num_experts is 0"),
        ({"text_config": {"hidden_size": -5}}, "text_config.hidden_size is -5"),
        ({"text_config": ["odd"]}, "text_config is"),
        ({"vision_config": {"patch_size": 1.5}}, "vision_config.patch_size is 1.5"),
        ({"projector_patch_to_query_dict": {"a": 1}}, "projector_patch_to_query_dict is"),
        ({"projector_patch_to_query_dict": [1]}, "projector_patch_to_query_dict is"),
    ],
)
def test_what_is_no_size_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        Architecture.from_config(real().to_dict() | change)
