"""A model is loaded whole, frozen and in the precision that was asked for, or refused by the names of its keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AriaForConditionalGeneration, PreTrainedTokenizerFast

from aria_finetune.errors import UserError
from aria_finetune.model.holding import Holding
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.loading import Experts, load_model, load_processor
from aria_finetune.model.nf4 import unquantised_experts
from aria_finetune.model.router import Float32Router
from aria_finetune.model.settings import pad_id, vision_tokens

LAYER = "language_model.model.layers.1."
IN_MEMORY = "model.language_model.layers.1."
BOTH: list[Experts] = ["nf4", "bf16"]
Weights = dict[str, torch.Tensor]
Edit = Callable[[Callable[[Weights], object]], Path]


def refusal(folder: Path, experts: Experts) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(folder), experts=experts)
    assert caught.value.where == str(folder)
    return caught.value.message


@pytest.mark.parametrize("experts", BOTH)
@pytest.mark.parametrize(
    ("stored", "named"),
    [
        (LAYER + "mlp.experts.fc1.weight", IN_MEMORY + "mlp.experts.gate_up_proj"),
        (LAYER + "mlp.experts.fc2.weight", IN_MEMORY + "mlp.experts.down_proj"),
        (LAYER + "mlp.router.weight", IN_MEMORY + "mlp.router.weight"),
        (LAYER + "self_attn.q_proj.weight", IN_MEMORY + "self_attn.q_proj.weight"),
        (LAYER + "mlp.shared_experts.up_proj.weight", IN_MEMORY + "mlp.shared_experts.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("multi_modal_projector.query", "model.multi_modal_projector.query"),
    ],
)
def test_a_missing_key_is_named(edited: Edit, stored: str, named: str, experts: Experts) -> None:
    message = refusal(edited(lambda weights: weights.pop(stored)), experts)
    assert f"1 missing keys: {named}" in message


@pytest.mark.parametrize("experts", BOTH)
def test_an_unexpected_key_is_named(edited: Edit, experts: Experts) -> None:
    folder = edited(lambda weights: weights.update({LAYER + "self_attn.q_proj.bias": torch.zeros(64)}))
    assert f"1 unexpected keys: {IN_MEMORY}self_attn.q_proj.bias" in refusal(folder, experts)


@pytest.mark.parametrize("experts", BOTH)
@pytest.mark.parametrize(
    ("stored", "shape", "said"),
    [
        ("mlp.experts.fc1.weight", (64, 64, 64), "mlp.experts.gate_up_proj (64, 64, 64) instead of (64, 64, 128)"),
        ("mlp.experts.fc2.weight", (32, 64, 64), "mlp.experts.down_proj (32, 64, 64) instead of (64, 64, 64)"),
        ("self_attn.k_proj.weight", (32, 64), "self_attn.k_proj.weight (32, 64) instead of (64, 64)"),
        (
            "mlp.shared_experts.down_proj.weight",
            (64, 64),
            "mlp.shared_experts.down_proj.weight (64, 64) instead of (64, 128)",
        ),
        ("mlp.router.weight", (32, 64), "mlp.router.weight (32, 64) instead of (64, 64)"),
        ("input_layernorm.weight", (32,), "input_layernorm.weight (32,) instead of (64,)"),
    ],
)
def test_another_shape_is_named(edited: Edit, stored: str, shape: tuple[int, ...], said: str, experts: Experts) -> None:
    """transformers itself lets another shape pass where the weight becomes 4-bit."""
    folder = edited(lambda weights: weights.update({LAYER + stored: torch.zeros(shape, dtype=torch.bfloat16)}))
    assert f"1 misshapen keys: {IN_MEMORY}{said}" in refusal(folder, experts)


def test_of_many_keys_five_are_named_and_the_rest_counted(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (copied / "config.json").write_text(json.dumps(config))
    message = refusal(copied, "bf16")
    assert "12 missing keys: model.language_model.layers.2.input_layernorm.weight" in message
    assert message.count("model.language_model.layers.2.") == 5
    assert message.endswith("and 7 more")


@pytest.mark.parametrize("stored_as", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("experts", "dtype"),
    [("nf4", torch.bfloat16), ("nf4", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)],
)
def test_every_precision(
    tiny_folder: Path, fp32_folder: Path, stored_as: str, experts: Experts, dtype: torch.dtype, ids: torch.Tensor
) -> None:
    loaded = load_model(str(tiny_folder if stored_as == "bf16" else fp32_folder), experts=experts, dtype=dtype)
    model = loaded.model
    assert not model.training
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    routers = [module for module in model.modules() if isinstance(module, Float32Router)]
    assert len(routers) == model.config.text_config.num_hidden_layers
    kept = {parameter.dtype for name, parameter in model.named_parameters() if "router" not in name}
    assert kept == ({dtype, torch.uint8} if experts == "nf4" else {dtype})
    assert len(unquantised_experts(model)) == (0 if experts == "nf4" else 4)
    with torch.no_grad():
        assert model(input_ids=ids).logits.dtype == dtype


def test_dense_logits_are_those_of_plain_transformers(fp32_folder: Path, ids: torch.Tensor) -> None:
    plain = AriaForConditionalGeneration.from_pretrained(fp32_folder, dtype=torch.float32)
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        for implementation in ("grouped_mm", "eager"):
            model = load_model(
                str(fp32_folder), experts="fp32", dtype=torch.float32, implementation=implementation
            ).model
            assert (model(input_ids=ids).logits - expected).abs().max() <= 1e-5, implementation


@pytest.mark.parametrize("stored_as", ["bf16", "fp32"])
@pytest.mark.parametrize(("experts", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_weights_and_buffers_are_those_of_plain_transformers(
    tiny_folder: Path, fp32_folder: Path, stored_as: str, experts: Experts, dtype: torch.dtype
) -> None:
    folder = tiny_folder if stored_as == "bf16" else fp32_folder
    plain = AriaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    ours = load_model(str(folder), experts=experts, dtype=dtype).model
    weights = {name: value for name, value in ours.named_parameters() if "router" not in name}
    expected = {name: value for name, value in plain.named_parameters() if "router" not in name}
    for found, due in ((weights, expected), (dict(ours.named_buffers()), dict(plain.named_buffers()))):
        assert found.keys() == due.keys()
        for name, value in due.items():
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
    assert ours.generation_config.to_dict() == plain.generation_config.to_dict()
    assert ours.dtype == plain.dtype
    assert ours.config.text_config.dtype == plain.config.text_config.dtype
    assert ours.config.name_or_path == plain.config.name_or_path == str(folder)


def test_progress_is_told_by_layer(tiny_folder: Path) -> None:
    told: list[tuple[int, int]] = []
    load_model(str(tiny_folder), watch=lambda done, layers: told.append((done, layers)))
    assert {layers for _, layers in told} == {2}
    done = [number for number, _ in told]
    assert done == sorted(done)
    assert set(done) == {0, 1, 2}


def test_weights_may_be_tied(edited: Edit) -> None:
    folder = edited(lambda weights: weights.pop("language_model.lm_head.weight"))
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(str(folder)).model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_ways_of_holding_that_can_not_be_are_refused(edited: Edit) -> None:
    with pytest.raises(ValueError, match="need experts in NF4"):
        load_model("tiny", experts="bf16", holding=Holding(lm_head="nf4"))
    folder = edited(lambda weights: weights.pop("language_model.lm_head.weight"))
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    for holding in (Holding(lm_head="nf4"), Holding(embedding="host")):
        with pytest.raises(UserError, match="the lm_head of this checkpoint is its embedding") as raised:
            load_model(str(folder), holding=holding)
        assert raised.value.fix == "set model.lm_head=dense model.embedding=device"
    assert load_model(str(folder), holding=Holding()).model.config.tie_word_embeddings


def test_the_router_keeps_what_the_checkpoint_has(edited: Edit) -> None:
    """An fp32 router weight is not rounded by way of a bf16 model."""
    fine = torch.full((64, 64), 1.0) + torch.arange(64 * 64).view(64, 64) * 2.0**-20
    assert not torch.equal(fine, fine.bfloat16().float())
    folder = edited(lambda weights: weights.update({LAYER + "mlp.router.weight": fine}))
    router = load_model(str(folder)).model.model.language_model.layers[1].mlp.router
    assert router.weight.dtype == torch.float32
    assert torch.equal(router.weight, fine)


def test_each_router_gets_the_weight_of_its_layer(tiny_folder: Path) -> None:
    loaded = load_model(str(tiny_folder), experts="bf16")
    for number, layer in enumerate(loaded.model.model.language_model.layers):
        stored = loaded.checkpoint.read(f"language_model.model.layers.{number}.mlp.router.weight")
        assert torch.equal(layer.mlp.router.weight, stored.float())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": 1}'),
        ("tokenizer_config.json", "{"),
        ("processor_config.json", None),
        ("processor_config.json", "{"),
    ],
)
def test_a_damaged_processor_is_a_user_error(copied: Path, file: str, text: str | None) -> None:
    (copied / file).unlink()
    if text is not None:
        (copied / file).write_text(text)
    with pytest.raises(UserError, match="tokenizer or image processor can't be loaded") as caught:
        load_processor(open_checkpoint(str(copied)))
    assert caught.value.where == str(copied)
    assert "tokenizer.json" in str(caught.value.fix)


def test_a_tokenizer_from_before_the_image_token_had_a_name(copied: Path, tiny_folder: Path) -> None:
    config = json.loads((copied / "tokenizer_config.json").read_text())
    del config["image_token"]
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    before = load_processor(open_checkpoint(str(tiny_folder))).tokenizer
    tokenizer = load_processor(open_checkpoint(str(copied))).tokenizer
    assert tokenizer.image_token == before.image_token
    assert tokenizer.image_token_id == before.image_token_id == 9
    assert len(tokenizer) == len(before)


def test_the_chat_template_comes_from_its_file_or_from_the_tokenizer(copied: Path) -> None:
    stored = (copied / "chat_template.jinja").read_text()
    assert load_processor(open_checkpoint(str(copied))).chat_template == stored
    (copied / "chat_template.jinja").unlink()
    config = json.loads((copied / "tokenizer_config.json").read_text()) | {"chat_template": "{{ messages }}"}
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_processor(open_checkpoint(str(copied))).chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vision_config": {"patch_size": 14}, "projector_patch_to_query_dict": {"1225": 128, "4900": 256}}, None),
        ({}, None),
        ({"vision_config": {"patch_size": 10}, "projector_patch_to_query_dict": {"49": 7}}, {70: 7}),
    ],
)
def test_image_tokens_of_a_tile(tiny_folder: Path, config: dict[str, object], expected: dict[int, int] | None) -> None:
    checkpoint = replace(open_checkpoint(str(tiny_folder)), config=config)
    assert vision_tokens(checkpoint) == (expected or {490: 128, 980: 256})


def test_image_tokens_of_the_tiny_aria(tiny_folder: Path) -> None:
    assert vision_tokens(open_checkpoint(str(tiny_folder))) == {490: 128, 980: 256}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"vocab_size": 100, "pad_token_id": 2, "eos_token_id": 5}, 2),
        ({"vocab_size": 100, "pad_token_id": 100, "eos_token_id": 5}, 5),
        ({"vocab_size": 100, "pad_token_id": None, "eos_token_id": [5, 6], "bos_token_id": 1}, 1),
        ({"vocab_size": 100, "pad_token_id": -1}, 0),
        ({}, 0),
    ],
)
def test_rows_are_filled_with_an_id_inside_the_embedding(
    tiny_folder: Path, text: dict[str, object], expected: int
) -> None:
    assert pad_id(replace(open_checkpoint(str(tiny_folder)), config={"text_config": text})) == expected


def test_the_tokenizer_s_own_pad_lies_outside(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    tokenizer: PreTrainedTokenizerFast = load_processor(checkpoint).tokenizer
    rows = checkpoint.config["text_config"]["vocab_size"]
    assert tokenizer.pad_token_id == rows, "the tiny tokenizer no longer has the trap of the hub's"
    assert 0 <= pad_id(checkpoint) < rows
