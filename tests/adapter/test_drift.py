"""The distance between a merged model and its parts: zero for identical ones, and what the arithmetic says."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AriaForConditionalGeneration, AriaProcessor
from whole_models import inputs_of, logits_of, measure_drift

from aria_finetune.adapter.drift import Drift, compare
from aria_finetune.adapter.merge import merge
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import SINGLE

MakeAdapter = Callable[..., Path]


def test_identical_logits_have_no_distance() -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    assert compare(logits, logits.clone()) == Drift(logit_max=0.0, logit_mean=0.0, kl=0.0, agreement=1.0)


def test_distances_by_hand() -> None:
    """First position: 1/2, 1/2 against 3/4, 1/4. Second: 4/5, 1/5 against 1/5, 4/5."""
    live = torch.tensor([[0.0, 0.0], [math.log(4), 0.0]])
    other = torch.tensor([[math.log(3), 0.0], [0.0, math.log(4)]])
    drift = compare(live, other)
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    second = 0.8 * math.log(0.8 / 0.2) + 0.2 * math.log(0.2 / 0.8)
    assert drift.logit_max == pytest.approx(math.log(4), rel=1e-6)
    assert drift.logit_mean == pytest.approx((math.log(3) + 2 * math.log(4)) / 4, rel=1e-6)
    assert drift.kl == pytest.approx((first + second) / 2, rel=1e-5)
    assert drift.agreement == 0.5


def test_the_divergence_is_from_the_live_model() -> None:
    live, other = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert compare(live, other).kl != pytest.approx(compare(other, live).kl, rel=0.1)
    shares = torch.tensor([math.exp(5), 1, 1], dtype=torch.float64) / (math.exp(5) + 2)
    assert compare(live, other).kl == pytest.approx(float((shares * (shares * 3).log()).sum()), rel=1e-5)


def test_adding_the_same_to_all_logits_is_no_divergence() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    drift = compare(logits, logits + 2)
    assert drift.kl == pytest.approx(0.0, abs=1e-6)
    assert (drift.logit_max, drift.agreement) == (pytest.approx(2.0), 1.0)


def test_it_is_told_in_one_line() -> None:
    said = Drift(logit_max=0.5, logit_mean=0.01, kl=3e-4, agreement=0.994).describe()
    assert "\n" not in said
    for value in ("5.00e-01", "1.00e-02", "3.00e-04", "99.4%"):
        assert value in said


def test_the_prompts_are_what_the_processor_would_make(fp32_folder: Path, tiny_aria_processor: AriaProcessor) -> None:
    """A question alone, and the same with a picture, in the tokens and pixels that Aria knows."""
    text, sight = inputs_of(ChatTokenizer(tiny_aria_processor.tokenizer), 128)
    noise = Image.fromarray(sight["pixel_values"][0].permute(1, 2, 0).numpy())
    question = "What is in this picture?<|im_end|>\n<|im_start|>assistant\n"
    prompts = [f"<|im_start|>user\n{question}", f"<|im_start|>user\n<fim_prefix><|img|><fim_suffix>{question}"]
    expected = [
        tiny_aria_processor(text=prompts[0], return_tensors="pt"),
        tiny_aria_processor(
            text=prompts[1], images=[noise], images_kwargs={"max_image_size": 490}, return_tensors="pt"
        ),
    ]
    assert [text["input_ids"].tolist(), sight["input_ids"].tolist()] == [row["input_ids"].tolist() for row in expected]
    model = AriaForConditionalGeneration.from_pretrained(fp32_folder).eval()
    with torch.no_grad():
        given = logits_of(model, [text, sight])
        wanted = torch.cat([model(**row).logits[0] for row in expected])
    assert (given - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_an_adapter_that_does_nothing_drifts_nowhere(
    tiny_folder: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_folder, deviation=0.0)
    merge(adapter, tmp_path / "merged")
    assert measure_drift(adapter, tmp_path / "merged") == Drift(0.0, 0.0, 0.0, 1.0)


def test_an_fp32_merge_drifts_by_rounding_only(fp32_folder: Path, adapter: Path, tmp_path: Path) -> None:
    merge(adapter, tmp_path / "merged", base=str(fp32_folder))
    drift = measure_drift(adapter, tmp_path / "merged", base=str(fp32_folder))
    assert drift.logit_max <= 1e-4
    assert abs(drift.kl) <= 1e-6
    assert drift.agreement == 1.0


def test_the_base_alone_is_seen_to_differ(tiny_folder: Path, adapter: Path, tmp_path: Path) -> None:
    """Its distance from the live adapter is what a merge that lost the adapter would have."""
    merge(adapter, tmp_path / "merged")
    merged, lost = measure_drift(adapter, tmp_path / "merged"), measure_drift(adapter, tiny_folder)
    assert lost.logit_mean > 2 * merged.logit_mean
    assert lost.kl > 2 * merged.kl


def test_a_merge_that_lost_a_tensor_is_refused(tiny_folder: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / SINGLE)
    del tensors["language_model.model.layers.0.mlp.router.weight"]
    save_file(tensors, tmp_path / "merged" / SINGLE)
    with pytest.raises(UserError, match="does not load completely") as caught:
        measure_drift(adapter, tmp_path / "merged")
    assert caught.value.where == str(tmp_path / "merged")
