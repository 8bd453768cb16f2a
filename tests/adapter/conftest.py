"""Adapters as training leaves them, and a base of another shape than the tiny Aria's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AriaForConditionalGeneration, AriaProcessor, AriaTextConfig

from aria_finetune.adapter.saving import save_adapter
from aria_finetune.model.base_identity import identity_of
from aria_finetune.model.experts import LEAN
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.tiny.architecture import tiny_config

MakeAdapter = Callable[..., Path]


@pytest.fixture(scope="session")
def make_adapter(
    pretend_trained: Callable[..., PeftModel],
    tiny_aria_processor: AriaProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> MakeAdapter:
    """A function that saves an adapter on `base` whose B matrices are not zero."""

    def make(base: Path, plan: LoraPlan | None = None, *, deviation: float = 0.01) -> Path:
        plan = plan or LoraPlan(rank=4, alpha=8)
        loaded = load_model(str(base), experts="bf16", implementation=LEAN)
        model = loaded.model
        adapted = add_lora(model, plan, base_name=str(base), seed=1)
        folder = tmp_path_factory.mktemp("run") / "adapter"
        trained = pretend_trained(adapted, deviation=deviation)
        save_adapter(trained, folder, tiny_aria_processor, identity_of(loaded.checkpoint))
        return folder

    return make


@pytest.fixture(scope="session")
def adapter(make_adapter: MakeAdapter, tiny_folder: Path) -> Path:
    """An adapter on the tiny Aria. Not to be written to."""
    return make_adapter(tiny_folder)


@pytest.fixture(scope="session")
def odd_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Path]:
    """A random Aria in which no two sides of an adapted weight are alike, in bf16 and in fp32, in several files."""
    config = tiny_config()
    sizes = {
        "hidden_size": 96,
        "head_dim": None,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "moe_num_experts": 16,
        "num_hidden_layers": 3,
    }
    config.text_config = AriaTextConfig(**config.text_config.to_dict() | sizes)
    torch.manual_seed(0)
    model = AriaForConditionalGeneration(config)
    folders = {dtype: tmp_path_factory.mktemp("odd") / "aria" for dtype in (torch.float32, torch.bfloat16)}
    for dtype, folder in folders.items():
        model.to(dtype).save_pretrained(folder, max_shard_size="700KB")
    return folders
