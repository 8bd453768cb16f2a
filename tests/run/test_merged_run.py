"""What a run leaves is what a merge makes: the live model and the merged one say the same, pictures included."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AriaForConditionalGeneration
from whole_models import measure_drift

from aria_finetune.adapter.drift import compare
from aria_finetune.adapter.merge import merge
from aria_finetune.material import build_collator, prepare
from aria_finetune.model.vision import as_encoder_outputs, image_features
from aria_finetune.recipe import Recipe
from aria_finetune.training import train


@pytest.fixture
def run(make_recipe: Callable[..., Recipe]) -> Path:
    return train(make_recipe("train.max_steps=20"), Console(file=io.StringIO()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_from_an_fp32_base_the_logits_agree_within_1e_5(
    dtype: torch.dtype, run: Path, fp32_folder: Path, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """In fp64, where only the rounding of the merged weights is left; in fp32 relative to the logits, which reach 14.

    Their last place is 1e-6 wide there, and a few positions are moved by up to 3e-5 by fp32 arithmetic alone.
    """
    merge(run / "adapter", tmp_path / "merged", base=str(fp32_folder))
    merged, base = whole(tmp_path / "merged", dtype), whole(fp32_folder, dtype)
    material = prepare(make_recipe(), tmp_path / "store")
    collator = build_collator(make_recipe(), material)
    batches = [collator([{"row": row}]) for row in range(14)]
    assert sum("tile_order" in batch for batch in batches) >= 7

    with torch.no_grad():
        alone = [logits(merged, merged, batch) for batch in batches]
        before = [logits(base, base, batch) for batch in batches]
        live = PeftModel.from_pretrained(base, run / "adapter").eval().to(dtype)
        together = [logits(live, base, batch) for batch in batches]
    for one, other, without in zip(alone, together, before, strict=True):
        difference = (one - other).abs().amax(-1)
        scale = 1.0 if dtype == torch.float64 else one.abs().max().item()
        assert difference.max() < 1e-5 * scale
        assert (one - without).abs().max() > 1e-2, "the adapter does nothing"


def whole(folder: Path, dtype: torch.dtype) -> AriaForConditionalGeneration:
    """A checkpoint in plain transformers, nothing missing; the eager experts can also compute in fp64."""
    model, report = AriaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, experts_implementation={"text_config": "eager"}
    )
    assert model.dtype == torch.float32
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.to(dtype).eval()


def logits(model: torch.nn.Module, base: AriaForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    features = image_features(base, batch)
    pictures = {} if features is None else {"mm_encoder_outputs": as_encoder_outputs(features)}
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **pictures).logits


def test_from_the_bf16_base_the_drift_is_told(run: Path, tmp_path: Path) -> None:
    merge(run / "adapter", tmp_path / "merged")
    drift = measure_drift(run / "adapter", tmp_path / "merged")
    assert 0 < drift.logit_mean < 0.1
    assert drift.logit_mean <= drift.logit_max
    assert 0 <= drift.kl < 1e-2
    assert drift.agreement > 0.9
    assert "KL" in drift.describe()
    same = compare(torch.eye(3), torch.eye(3))
    assert (same.logit_max, same.kl, same.agreement) == (0, 0, 1)
