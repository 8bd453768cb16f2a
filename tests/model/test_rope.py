"""The base of the rotary embedding: into the modules, beside the adapter, into the merged config.json, and never two of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AriaForConditionalGeneration, AriaProcessor
from whole_models import measure_drift

from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.saving import save_adapter
from aria_finetune.errors import UserError
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, add_lora, load_adapter
from aria_finetune.model.rope import ROPE_FILE, Rope, check_same_theta, read_rope

SHORT, LONG = Rope(100_000.0, 8192), Rope(5_000_000.0, 65_536)
"""Of Aria's 8K base, and of the Aria that was made of it."""


@pytest.fixture
def short(copied: Path) -> Path:
    """The tiny Aria as if it were the 8K base, its config.json in the form that older transformers wrote."""
    config = json.loads((copied / "config.json").read_text())
    del config["text_config"]["rope_parameters"]
    config["text_config"] |= {"rope_theta": 100_000, "max_position_embeddings": 8192, "rope_scaling": None}
    (copied / "config.json").write_text(json.dumps(config))
    return copied


def frequencies(model: AriaForConditionalGeneration) -> list[float]:
    found: list[float] = model.model.language_model.rotary_emb.inv_freq.tolist()
    return found


def by_hand(theta: float, size: int = 16) -> list[float]:
    return [theta ** (-2 * pair / size) for pair in range(size // 2)]


@pytest.mark.parametrize("experts", ["nf4", "bf16"])
def test_frequencies_are_those_of_the_base_that_is_asked_for(short: Path, experts) -> None:
    """In fp32 whatever the model is in: the eighth of them turns by 7e-5 or 2e-6 from a token to the next."""
    own = load_model(str(short), experts=experts).model
    widened = load_model(str(short), experts=experts, rope=LONG).model
    assert frequencies(own) == pytest.approx(by_hand(100_000), rel=1e-6)
    assert frequencies(widened) == pytest.approx(by_hand(5_000_000), rel=1e-6)
    assert widened.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert own.config.text_config.max_position_embeddings == 8192
    assert widened.config.text_config.max_position_embeddings == 65_536


def test_angles_far_out_are_exact_to_a_hundredth(short: Path) -> None:
    """fp32 angles at the last of 65,536 places against fp64: the fastest pair has gone round 10,430 times."""
    rotary = load_model(str(short), rope=LONG).model.model.language_model.rotary_emb
    places = torch.tensor([[0, 1, 8191, 65_535]])
    cos, sin = rotary(torch.zeros(1, 4, 16, dtype=torch.float32), places)
    for row, place in enumerate(places[0].tolist()):
        for pair, frequency in enumerate(by_hand(5_000_000)):
            assert cos[0, row, pair].item() == pytest.approx(math.cos(place * frequency), abs=1e-2)
            assert sin[0, row, pair].item() == pytest.approx(math.sin(place * frequency), abs=1e-2)


def test_another_base_is_another_model_beyond_the_first_token(short: Path, ids: torch.Tensor) -> None:
    with torch.no_grad():
        own, widened = (load_model(str(short), rope=rope).model(input_ids=ids).logits for rope in (None, LONG))
        shipped = load_model("tiny").model(input_ids=ids).logits
    assert torch.equal(own[:, 0], widened[:, 0])
    assert not torch.allclose(own[:, 20:], widened[:, 20:], atol=1e-3)
    assert torch.equal(widened, shipped), "the same weights with the base that the shipped config.json has"


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ({"rope_theta": 100_000, "max_position_embeddings": 8192}, SHORT),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}, "max_position_embeddings": 65_536}, LONG),
        ({"rope_parameters": {"rope_theta": 5e6}, "rope_theta": 1e5, "max_position_embeddings": 65_536}, LONG),
        ({}, Rope(10_000.0, 2048)),
    ],
)
def test_both_forms_of_config_json(text, due: Rope) -> None:
    assert Rope.of({"text_config": text}) == due
    wanted = Rope(123.0, 456)
    config = {"text_config": text, "model_type": "aria"}
    changed = wanted.put_in(config)
    assert Rope.of(changed) == wanted
    assert changed["model_type"] == "aria"
    assert Rope.of(config) == due, "the original stays"


def test_more_places_come_with_a_higher_base_alone() -> None:
    assert SHORT.widened(None, 65_536) == SHORT
    assert SHORT.widened(100_000, 65_536) == SHORT
    assert SHORT.widened(5e6, 65_536) == LONG
    assert SHORT.widened(5e6, 4096) == Rope(5e6, 8192)
    assert SHORT.widened(10_000, 65_536) == Rope(10_000, 8192)


@pytest.fixture
def adapter(
    short: Path, tmp_path: Path, pretend_trained: Callable[..., PeftModel], tiny_aria_processor: AriaProcessor
) -> Path:
    """An adapter that was trained with the higher base."""
    model = load_model(str(short), experts="bf16", rope=LONG).model
    adapted = add_lora(model, LoraPlan(rank=4), base_name=str(short), seed=1)
    save_adapter(pretend_trained(adapted), tmp_path / "adapter", tiny_aria_processor)
    return tmp_path / "adapter"


def test_a_merged_checkpoint_says_what_its_adapter_was_trained_with(
    short: Path, adapter: Path, tmp_path: Path, ids: torch.Tensor
) -> None:
    assert read_rope(adapter) == LONG
    merge(adapter, tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (written["text_config"]["rope_theta"], written["text_config"]["max_position_embeddings"]) == (5e6, 65_536)
    assert {**written, "text_config": None} == {**json.loads((short / "config.json").read_text()), "text_config": None}
    merged = AriaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert frequencies(merged) == pytest.approx(by_hand(5_000_000), rel=1e-6)
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["rope"] == {"theta": 5e6, "positions": 65_536}
    drift = measure_drift(adapter, tmp_path / "merged")
    assert drift.kl < 1e-3
    (tmp_path / "merged" / "config.json").write_bytes((short / "config.json").read_bytes())
    assert measure_drift(adapter, tmp_path / "merged").kl > 10 * drift.kl, "with the base's own it is another model"


def test_without_a_change_config_json_is_the_bases_own(
    tiny_folder: Path, tmp_path: Path, pretend_trained: Callable[..., PeftModel], tiny_aria_processor: AriaProcessor
) -> None:
    model = load_model("tiny", experts="bf16").model
    adapted = add_lora(model, LoraPlan(rank=4), base_name=str(tiny_folder), seed=1)
    save_adapter(pretend_trained(adapted), tmp_path / "adapter", tiny_aria_processor)
    merge(tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "config.json").read_bytes() == (tiny_folder / "config.json").read_bytes()


def test_an_adapter_is_refused_beside_another_base(short: Path, adapter: Path) -> None:
    model = load_model(str(short), experts="bf16").model
    with pytest.raises(UserError, match="trained with a RoPE base of 5000000, and the model has 100000") as caught:
        load_adapter(model, str(adapter))
    assert caught.value.fix == "set model.rope_theta=5000000"
    load_adapter(load_model(str(short), experts="bf16", rope=LONG).model, str(adapter))
    (adapter / ROPE_FILE).unlink()  # as adapters were before
    load_adapter(load_model(str(short), experts="bf16").model, str(adapter))


@pytest.mark.parametrize("text", ["", "[]", '{"theta": "much", "positions": 1}', '{"theta": -1, "positions": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / ROPE_FILE).write_text(text)
    with pytest.raises(UserError, match=ROPE_FILE):
        check_same_theta(tmp_path, 5e6)
