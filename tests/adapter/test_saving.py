"""What was written is compared with what the model holds, so that no broken adapter passes for a good one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AriaProcessor, AutoTokenizer
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

from aria_finetune.adapter.saving import ADAPTER_WEIGHTS, check_saved, save_adapter
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, add_lora, saved_names

KEY = "base_model.model.model.language_model.layers.1.mlp.router.lora_B.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model(tiny_folder: Path, pretend_trained: Callable[..., PeftModel]) -> PeftModel:
    return pretend_trained(
        add_lora(load_model(str(tiny_folder)).model, LoraPlan(rank=4), base_name="rhymes-ai/Aria", seed=0)
    )


@pytest.fixture
def saved(model: PeftModel, tiny_aria_processor: AriaProcessor, tmp_path: Path) -> Path:
    save_adapter(model, tmp_path / "adapter", tiny_aria_processor)
    return tmp_path / "adapter"


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS)


def test_an_adapter_is_saved_with_tokenizer_and_processor(
    saved: Path, model: PeftModel, tiny_aria_processor: AriaProcessor
) -> None:
    stored = load_file(saved / ADAPTER_WEIGHTS)
    held = saved_names(model)
    assert set(stored) == set(held)
    assert all(torch.equal(stored[name], held[name]) for name in stored)
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "rhymes-ai/Aria"
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer.get_vocab() == tiny_aria_processor.tokenizer.get_vocab()
    assert AriaImageProcessorPil.from_pretrained(saved).max_image_size == 980
    assert (saved / "chat_template.jinja").read_text() == tiny_aria_processor.chat_template
    assert not list(saved.glob("*.bin")), "pickle was written"


def test_a_good_folder_passes(saved: Path, model: PeftModel) -> None:
    check_saved(model, saved)


@pytest.mark.parametrize("change", [1e-6, 2.0**-20, 1.0])
def test_a_changed_value(saved: Path, model: PeftModel, change: float) -> None:
    edit(saved, lambda tensors: tensors[KEY][3, 1].add_(change))
    with pytest.raises(RuntimeError, match=f"{KEY} differs"):
        check_saved(model, saved)


def test_the_smallest_flipped_bit(saved: Path, model: PeftModel) -> None:
    file = saved / ADAPTER_WEIGHTS
    data = bytearray(file.read_bytes())
    data[-4] ^= 1  # the last bit of the last value
    file.write_bytes(data)
    with pytest.raises(RuntimeError, match="differs"):
        check_saved(model, saved)


def test_a_missing_key(saved: Path, model: PeftModel) -> None:
    edit(saved, lambda tensors: tensors.pop(KEY))
    with pytest.raises(RuntimeError, match=f"keys differ.*{KEY}"):
        check_saved(model, saved)


def test_a_foreign_key(saved: Path, model: PeftModel) -> None:
    edit(saved, lambda tensors: tensors.update({"another.weight": torch.zeros(1)}))
    with pytest.raises(RuntimeError, match=r"keys differ.*another\.weight"):
        check_saved(model, saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_saved_in_silence(
    model: PeftModel, tiny_aria_processor: AriaProcessor, tmp_path: Path, value: float
) -> None:
    saved_names(model)[KEY].data[0, 0] = value
    with pytest.raises(RuntimeError, match=f"{KEY} is not finite"):
        save_adapter(model, tmp_path / "adapter", tiny_aria_processor)
