"""A merged checkpoint is round(W + delta) bit for bit, computes what base and adapter do, or is not there at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AriaForConditionalGeneration, AriaProcessor

from aria_finetune.adapter.base import base_of
from aria_finetune.adapter.files import open_adapter
from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import INDEX, SINGLE
from aria_finetune.model.lora import LoraPlan
from aria_finetune.model.nf4 import AriaNF4Config
from aria_finetune.quantization import quantize

MakeAdapter = Callable[..., Path]
PLANS = {
    "rank 4": LoraPlan(rank=4, alpha=8),
    "rank-stabilised": LoraPlan(rank=16, alpha=8, rslora=True),
    "router": LoraPlan(targets=("router",), rank=2, alpha=4),
    "shared experts": LoraPlan(targets=("shared_experts",), rank=4, alpha=8),
    "experts": LoraPlan(targets=("experts",), rank=2, alpha=4),
    "rank-stabilised experts": LoraPlan(targets=("experts", "router"), rank=4, alpha=6, rslora=True),
    "projector": LoraPlan(targets=("projector",), rank=4, alpha=8),
    "vision": LoraPlan(targets=("vision",), rank=2, alpha=4),
    "everything in one layer": LoraPlan(
        targets=("attention", "router", "shared_experts", "experts"), rank=4, alpha=8, layers=(1,)
    ),
}
SCALING = {
    "rank 4": 8 / 4,
    "rank-stabilised": 8 / 4,
    "router": 4 / 2,
    "shared experts": 8 / 4,
    "experts": 4 / 2,
    "rank-stabilised experts": 6 / 2,
    "projector": 8 / 4,
    "vision": 4 / 2,
    "everything in one layer": 8 / 4,
}
"""By hand: alpha / rank, or alpha / sqrt(16)."""
DORA = LoraPlan(targets=("attention", "shared_experts"), rank=4, alpha=8, dora=True)


def raw_tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor of a checkpoint, read by the format's description."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = (entry["dtype"], entry["shape"], data[start + begin : start + end])
    return found


def round_to_bf16(values: np.ndarray) -> bytes:
    """To the nearest, ties to even, by integer arithmetic on the bits of fp32."""
    bits = values.astype("<f4").reshape(-1).view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def from_bf16(data: bytes, shape: list[int]) -> np.ndarray:
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)


def hub_deltas(adapter: Path, scaling: float) -> dict[str, np.ndarray]:
    """fp64 deltas by the names of hub-layout weights, straight from the adapter file."""
    tensors = {name: tensor.double().numpy() for name, tensor in load_file(adapter / ADAPTER_WEIGHTS).items()}
    rank = json.loads((adapter / ADAPTER_CONFIG).read_text())["r"]
    deltas = {}
    for name, a in tensors.items():
        if "lora_A" not in name:
            continue
        b = tensors[name.replace("lora_A", "lora_B")]
        weight = name.removeprefix("base_model.model.model.")
        weight = re.sub(r"^language_model\.", "language_model.model.", weight)
        if ".mlp.experts." in weight:
            # What PEFT's `ParamWrapper.get_delta_weight` computes.
            experts = len(a) // rank
            delta = np.einsum("ore,eri->eio", b.reshape(len(b), rank, experts), a.reshape(experts, rank, -1))
            weight = weight.replace("base_layer.lora_A", "fc1").replace("experts.lora_A", "experts.fc2")
        else:
            delta, weight = b @ a, weight.replace("lora_A.weight", "weight")
        deltas[weight] = scaling * delta
    return deltas


def on_a_grid(adapter: Path) -> Path:
    """The same adapter with values so coarse that B A is exact in fp32, in whatever order it is summed."""
    random = np.random.default_rng(0)
    tensors = {
        name: torch.from_numpy(random.integers(-8, 9, tuple(tensor.shape)).astype(np.float32)) * 2.0**-7
        for name, tensor in load_file(adapter / ADAPTER_WEIGHTS).items()
    }
    save_file(tensors, adapter / ADAPTER_WEIGHTS)
    return adapter


def check_every_bit(base: Path, merged: Path, deltas: dict[str, np.ndarray]) -> None:
    before, after = raw_tensors(base), raw_tensors(merged)
    assert list(before) == list(after)
    assert set(deltas) <= set(before)
    for name, (dtype, shape, data) in before.items():
        expected = data
        if name in deltas:
            assert dtype == "BF16"
            delta = deltas[name].astype(np.float32)
            assert (delta == deltas[name]).all(), "the test's delta is not exact"
            expected = round_to_bf16(from_bf16(data, shape) + delta)
            assert expected != data
        assert after[name] == (dtype, shape, expected), name


@pytest.mark.parametrize("plan", PLANS)
def test_every_merged_weight_is_rounded_once(
    tiny_folder: Path, make_adapter: MakeAdapter, tmp_path: Path, plan: str
) -> None:
    adapter = on_a_grid(make_adapter(tiny_folder, PLANS[plan]))
    merge(adapter, tmp_path / "merged")
    check_every_bit(tiny_folder, tmp_path / "merged", hub_deltas(adapter, SCALING[plan]))


@pytest.mark.parametrize("plan", PLANS)
def test_weights_of_unlike_sides_in_several_files(
    odd_bases: dict[torch.dtype, Path], make_adapter: MakeAdapter, tmp_path: Path, plan: str
) -> None:
    """Router (16, 96), keys (48, 96): a transposed delta could not pass."""
    base = odd_bases[torch.bfloat16]
    adapter = on_a_grid(make_adapter(base, PLANS[plan]))
    changed = merge(adapter, tmp_path / "merged")
    deltas = hub_deltas(adapter, SCALING[plan])
    assert {tensor.name for tensor in changed} == set(deltas)
    if "router" in PLANS[plan].targets:
        assert deltas["language_model.model.layers.1.mlp.router.weight"].shape == (16, 96)
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 3
    check_every_bit(base, tmp_path / "merged", deltas)


def test_a_trained_adapter_is_added_in_fp32(tiny_folder: Path, adapter: Path, tmp_path: Path) -> None:
    """Values off any grid: the same fp32 operations, and within one rounding of fp64."""
    merge(adapter, tmp_path / "merged")
    before, after = load_file(tiny_folder / SINGLE), load_file(tmp_path / "merged" / SINGLE)
    pairs = load_file(adapter / ADAPTER_WEIGHTS)
    deltas = hub_deltas(adapter, 2.0)
    for stem in {name.rsplit(".lora_", 1)[0] for name in pairs}:
        name = stem.replace("base_model.model.model.language_model", "language_model.model") + ".weight"
        delta = 2.0 * (pairs[f"{stem}.lora_B.weight"] @ pairs[f"{stem}.lora_A.weight"])
        assert torch.equal(after[name], (before[name].float() + delta).bfloat16()), name
        exact = before[name].double().numpy() + deltas[name]
        assert (np.abs(after[name].double().numpy() - exact) <= 2.0**-8 * np.abs(exact) + 1e-8).all(), name


def test_dora_is_rounded_once(tiny_folder: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Within one rounding of fp64, and the report has what the weights moved by."""
    adapter = make_adapter(tiny_folder, DORA, deviation=0.1)
    changed = {tensor.name: tensor for tensor in merge(adapter, tmp_path / "merged")}
    before, after = load_file(tiny_folder / SINGLE), load_file(tmp_path / "merged" / SINGLE)
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    deltas = hub_deltas(adapter, 2.0)
    assert changed.keys() == deltas.keys()
    assert len(deltas) == 2 * 7
    for name, delta in deltas.items():
        stem = f"base_model.model.model.language_model.{name.removeprefix('language_model.model.')}"
        length = tensors[stem.replace("weight", "lora_magnitude_vector")].double().numpy()
        weight = before[name].double().numpy() + delta
        due = weight * (length / np.linalg.norm(weight, axis=1))[:, None]
        assert (np.abs(after[name].double().numpy() - due) <= 2.0**-8 * np.abs(due) + 1e-8).all(), name
        assert changed[name].delta_norm == pytest.approx(np.linalg.norm(due - before[name].double().numpy()), rel=1e-4)


def rows_with_pictures(processor: AriaProcessor) -> dict[str, torch.Tensor]:
    """Two rows, one with a wide picture and one with a tall."""
    random = np.random.default_rng(0)
    sizes = ((200, 300, 3), (300, 200, 3))
    images = [[Image.fromarray(random.integers(0, 256, size, dtype=np.uint8))] for size in sizes]
    turn = "<|im_start|>user\n<fim_prefix><|img|><fim_suffix>{}<|im_end|>\n<|im_start|>assistant\n"
    texts = [turn.format(question) for question in ("What colour is it?", "Which shape is there?")]
    made = processor(
        text=texts, images=images, images_kwargs={"max_image_size": 490}, padding=True, return_tensors="pt"
    )
    return {name: made[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_mask")}


def logits_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    # The tokenizer's <pad> lies outside the embedding.
    ids = inputs["input_ids"].where(inputs["attention_mask"].bool(), 2)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**inputs | {"input_ids": ids}).logits
    return logits[inputs["attention_mask"].bool()]


@pytest.fixture
def fp32_bases(fp32_folder: Path, odd_bases: dict[torch.dtype, Path]) -> dict[str, Path]:
    return {"tiny": fp32_folder, "odd": odd_bases[torch.float32]}


@pytest.mark.parametrize("plan", [*PLANS, "DoRA"])
@pytest.mark.parametrize("kind", ["tiny", "odd"])
def test_the_merged_model_says_what_base_and_adapter_say(
    kind: str,
    plan: str,
    fp32_bases: dict[str, Path],
    make_adapter: MakeAdapter,
    tiny_aria_processor: AriaProcessor,
    tmp_path: Path,
) -> None:
    base = fp32_bases[kind]
    adapter = make_adapter(base, PLANS.get(plan, DORA))
    merge(adapter, tmp_path / "merged")
    merged, report = AriaForConditionalGeneration.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    inputs = rows_with_pictures(tiny_aria_processor)
    plain = AriaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    without = logits_of(plain, inputs)
    live = logits_of(PeftModel.from_pretrained(plain, adapter), inputs)
    difference = (logits_of(merged, inputs) - live).abs().max()
    assert difference <= 1e-5 * max(1.0, float(live.abs().max()))
    assert (live - without).abs().max() > 1000 * difference, "the adapter does nothing"


def test_other_files_come_along_and_foreign_ones_stay(copied_base: Path, adapter: Path, tmp_path: Path) -> None:
    (copied_base / "notes.txt").write_text("kept")
    kept = {path.name for path in copied_base.iterdir()} - {SINGLE}
    assert {"config.json", "tokenizer.json", "processor_config.json"} < kept
    for name in ("training_args.bin", "modeling_aria.py", "consolidated.pth", "extra.safetensors"):
        (copied_base / name).write_bytes(b"never opened")
    (copied_base / "folder").mkdir()
    merge(adapter, tmp_path / "merged", base=str(copied_base))
    assert {path.name for path in (tmp_path / "merged").iterdir()} == kept | {SINGLE, "merge.json"}
    for name in kept:
        assert (tmp_path / "merged" / name).read_bytes() == (copied_base / name).read_bytes()


@pytest.fixture
def copied_base(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that may be written to."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def copied_adapter(adapter: Path, tmp_path: Path) -> Path:
    """A copy of an adapter on the tiny Aria that may be written to, in the folder of its run."""
    shutil.copytree(adapter, tmp_path / "run" / "adapter")
    return tmp_path / "run" / "adapter"


def test_the_report_says_what_was_done(tiny_folder: Path, adapter: Path, tmp_path: Path) -> None:
    merged = merge(adapter, tmp_path / "merged")
    report = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert (report["base"], report["adapters"][0]["folder"], report["adapters"][0]["scaling"]) == (
        str(tiny_folder),
        str(adapter),
        2.0,
    )
    assert report["tensors"] == [vars(tensor) for tensor in merged]
    deltas = hub_deltas(adapter, 2.0)
    assert {tensor.name for tensor in merged} == set(deltas)
    assert len(merged) == len(deltas) == 10, "every pair of the adapter is used once"
    before, after = load_file(tiny_folder / SINGLE), load_file(tmp_path / "merged" / SINGLE)
    for tensor in merged:
        weight = before[tensor.name].double().numpy()
        rounding = after[tensor.name].double().numpy() - weight - deltas[tensor.name]
        assert tensor.dtype == "bfloat16"
        assert tensor.weight_norm == pytest.approx(np.linalg.norm(weight), rel=1e-5)
        assert tensor.delta_norm == pytest.approx(np.linalg.norm(deltas[tensor.name]), rel=1e-5)
        assert tensor.rounding_norm == pytest.approx(np.linalg.norm(rounding), rel=1e-3)


def test_an_fp32_base_stays_fp32(fp32_folder: Path, adapter: Path, tmp_path: Path) -> None:
    merged = merge(adapter, tmp_path / "merged", base=str(fp32_folder))
    assert {tensor.dtype for tensor in merged} == {"float32"}
    assert {tensor.rounding_norm for tensor in merged} == {0.0}
    assert {dtype for dtype, _, _ in raw_tensors(tmp_path / "merged").values()} == {"F32"}


def test_the_run_folder_stands_for_its_adapter(copied_adapter: Path, tmp_path: Path) -> None:
    assert len(merge(copied_adapter.parent, tmp_path / "merged")) == 10


def refusal(adapter: Path, output: Path, base: Path | None = None) -> UserError:
    """The error, after which nothing of the output is left."""
    there = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as caught:
        merge(adapter, output, base=None if base is None else str(base))
    assert sorted(output.parent.iterdir()) == there
    return caught.value


def test_an_existing_output_is_left_alone(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious").write_text("kept")
    assert "at the output already" in refusal(adapter, tmp_path / "merged").message
    assert (tmp_path / "merged" / "precious").read_text() == "kept"


def test_a_4_bit_base_is_refused(copied_base: Path, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((copied_base / "config.json").read_text())
    config["quantization_config"] = json.loads(AriaNF4Config().to_json_string())
    (copied_base / "config.json").write_text(json.dumps(config))
    error = refusal(adapter, tmp_path / "merged", copied_base)
    assert "4-bit" in error.message
    assert "original bf16 weights" in str(error.fix)


def test_a_base_that_lacks_weights_is_refused(
    tiny_folder: Path, odd_bases: dict[torch.dtype, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """The adapter has three layers, the base two."""
    adapter = make_adapter(odd_bases[torch.bfloat16])
    error = refusal(adapter, tmp_path / "merged", tiny_folder)
    assert "lacks 5 weight(s)" in error.message
    assert "language_model.model.layers.2." in error.message


def test_another_shape_is_refused(odd_bases: dict[torch.dtype, Path], adapter: Path, tmp_path: Path) -> None:
    error = refusal(adapter, tmp_path / "merged", odd_bases[torch.bfloat16])
    assert "in the base" in error.message
    assert "(64, 64) in the adapter" in error.message
    assert "--base" in str(error.fix)


def test_a_truncated_base_leaves_nothing(copied_base: Path, adapter: Path, tmp_path: Path) -> None:
    weights = copied_base / SINGLE
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "can't be read" in refusal(adapter, tmp_path / "merged", copied_base).message


def test_a_damaged_adapter_is_refused(copied_adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(copied_adapter / ADAPTER_WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, copied_adapter / ADAPTER_WEIGHTS)
    assert "not finite" in refusal(copied_adapter, tmp_path / "merged").message


def test_an_index_that_leads_out_of_the_output_is_refused(copied_base: Path, adapter: Path, tmp_path: Path) -> None:
    (copied_base / SINGLE).rename(tmp_path / "outside.safetensors")
    names = load_file(tmp_path / "outside.safetensors")
    (copied_base / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "../outside.safetensors")}))
    assert "not in its folder" in refusal(adapter, tmp_path / "merged", copied_base).message


def rename_base(adapter: Path, name: str | None) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text()) | {"base_model_name_or_path": name}
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config))


def test_where_the_base_is_looked_for(copied_adapter: Path, tiny_folder: Path) -> None:
    assert base_of(open_adapter(copied_adapter)) == str(tiny_folder)
    rename_base(copied_adapter, "some/where")
    assert base_of(open_adapter(copied_adapter)) == "some/where"
    rename_base(copied_adapter, None)
    with pytest.raises(UserError, match="names no base model") as caught:
        base_of(open_adapter(copied_adapter))
    assert "--base" in str(caught.value.fix)
    beside = copied_adapter.parent / "base"
    beside.mkdir()
    assert base_of(open_adapter(copied_adapter)) == str(beside)
    rename_base(copied_adapter, "some/where")
    assert base_of(open_adapter(copied_adapter)) == str(beside), "a copy at hand goes before a name that is not here"
    rename_base(copied_adapter, str(tiny_folder))
    assert base_of(open_adapter(copied_adapter)) == str(tiny_folder)


def test_a_base_that_is_gone_is_named(copied_adapter: Path, tmp_path: Path) -> None:
    rename_base(copied_adapter, str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in refusal(copied_adapter, tmp_path / "merged").message


class TestNF4Base:
    """An adapter that was trained on an NF4 checkpoint merges into the weights that it was made of."""

    @pytest.fixture
    def source(self, tiny_folder: Path, tmp_path: Path) -> Path:
        shutil.copytree(tiny_folder, tmp_path / "source")
        return tmp_path / "source"

    @pytest.fixture
    def trained(self, source: Path, copied_adapter: Path, tmp_path: Path) -> Path:
        quantize(str(source), tmp_path / "nf4")
        rename_base(copied_adapter, str(tmp_path / "nf4"))
        return copied_adapter

    def test_the_original_weights_are_found(self, trained: Path, source: Path, tmp_path: Path) -> None:
        merge(trained, tmp_path / "merged")
        merge(trained, tmp_path / "expected", base=str(source))
        merged, expected = raw_tensors(tmp_path / "merged"), raw_tensors(tmp_path / "expected")
        assert merged == expected
        assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())

    def test_changed_weights_are_refused(self, trained: Path, source: Path, tmp_path: Path) -> None:
        file = source / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        error = refusal(trained, tmp_path / "merged")
        assert "not the weights that the NF4 checkpoint was made of: model.safetensors" in error.message
        assert error.where == str(source)

    def test_weights_that_are_gone(self, trained: Path, source: Path, tmp_path: Path) -> None:
        shutil.rmtree(source)
        error = refusal(trained, tmp_path / "merged")
        assert "trained on an NF4 checkpoint whose original weights can't be opened" in error.message
        assert error.fix == "name the original weights with --base"


def test_a_stack_of_experts_is_merged_one_expert_at_a_time(
    tiny_folder: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """The only tensor as large as the stack is the result, in the dtype of the base."""
    adapter = make_adapter(tiny_folder, PLANS["experts"])
    stack, largest = 64 * 64 * 64, [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
                largest[0] = max(largest[0], made.numel())
            return made

    with Watch():
        merged = merge(adapter, tmp_path / "merged")
    assert len(merged) == 4
    assert 0 < largest[0] < stack / 8


def test_experts_of_another_shape_are_refused(
    odd_bases: dict[torch.dtype, Path], tiny_folder: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_folder, PLANS["experts"])
    error = refusal(adapter, tmp_path / "merged", odd_bases[torch.bfloat16])
    assert "fc1.weight is (16, 96, 64) in the base and (64, 64, 128) in the adapter" in error.message
    assert "--base" in str(error.fix)
