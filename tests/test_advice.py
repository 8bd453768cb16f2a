"""Out of memory: which errors are, and which knobs are named for which recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aria_finetune.advice import Phase, explain_out_of_memory, memory_knobs
from aria_finetune.errors import UserError
from aria_finetune.memory import is_out_of_memory, memory_gib
from aria_finetune.recipe import Recipe, load_recipe


def recipe(folder: Path, *overrides: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text("model: {path: tiny}\ndata: {train: [{path: chat.jsonl}]}\n")
    return load_recipe(file, overrides)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("shape mismatch"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_only_running_out_of_memory_is_explained(tmp_path: Path, error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) is memory
    with (
        pytest.raises(UserError if memory else type(error)),
        explain_out_of_memory(recipe(tmp_path), "cpu", "training"),
    ):
        raise error


def test_a_real_allocation_that_is_too_large_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"out of memory while training: [\d.]+ GiB were in use of [\d.]+ GiB; .*1,234"),
        explain_out_of_memory(recipe(tmp_path), "cpu", "training", longest=1234),
    ):
        torch.empty(2**50, dtype=torch.uint8)


def test_the_knobs_come_by_what_they_cost(tmp_path: Path) -> None:
    named = [knob.setting for knob in memory_knobs(recipe(tmp_path, "train.per_device_train_batch_size=4",
        "train.gradient_accumulation_steps=2", "train.gradient_checkpointing=false", "model.experts=bf16",
        "data.split_images=true", "lora.rank=64"), "training")]  # fmt: skip
    assert named == [
        "train.per_device_train_batch_size=1 train.gradient_accumulation_steps=8",
        "data.packing=false",
        "train.gradient_checkpointing=true",
        "data.cache_image_features=true",
        "model.experts=nf4",
        "train.optim=adamw_8bit",
        "data.image_size=490",
        "data.split_images=false",
        "data.num_frames=4",
        "data.max_tokens=2048",
        "lora.rank=32",
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_knob_is_a_recipe_that_loads(tmp_path: Path, device: str) -> None:
    for knob in memory_knobs(recipe(tmp_path, "train.per_device_train_batch_size=4"), "training", device):
        assert recipe(tmp_path, *knob.setting.split())


OFF_THE_CARD = [
    "train.activation_offloading=true",
    "model.embedding=host",
    "model.lm_head=nf4",
    "moe.experts_at_a_time=8",
    "moe.implementation=lean",
    "moe.experts_on=host",
]


def test_what_can_be_taken_off_a_card_is_named_for_cards_alone(tmp_path: Path) -> None:
    def named(device: str, *overrides: str, phase: Phase = "training") -> list[str]:
        return [knob.setting for knob in memory_knobs(recipe(tmp_path, *overrides), phase, device)]

    cached = ["data.packing=false", "data.cache_image_features=true"]
    assert named("cuda")[:8] == [*cached, *OFF_THE_CARD]
    assert named("cuda", phase="loading") == [OFF_THE_CARD[1], OFF_THE_CARD[2], OFF_THE_CARD[5]]
    turned = [knob for knob in OFF_THE_CARD if knob != "moe.experts_at_a_time=8"]
    assert named("cuda", *turned) == named("cpu") == [*cached, *named("cuda")[8:]]
    assert "moe.implementation=lean moe.experts_at_a_time=null" in named("cuda", "moe.experts_at_a_time=8")
    assert not set(named("cpu")) & set(OFF_THE_CARD)
    assert named("cuda", "model.experts=bf16", *cached)[0] == "model.experts=nf4"
    assert "moe.experts_on=host" not in named("cuda", "moe.implementation=eager")
    assert "train.activation_offloading=true" not in named("cuda", "train.gradient_checkpointing=false")


def test_while_loading_only_weights_count(tmp_path: Path) -> None:
    assert [knob.setting for knob in memory_knobs(recipe(tmp_path, "model.experts=bf16"), "loading")] == [
        "model.experts=nf4"
    ]
    with pytest.raises(UserError) as raised, explain_out_of_memory(recipe(tmp_path), "cpu", "loading"):
        raise MemoryError
    assert raised.value.fix == "use a larger card; the recipe asks for the least"


def test_the_machines_memory_is_in_gib() -> None:
    with Path("/proc/meminfo").open() as file:
        total = int(file.readline().split()[1]) * 1024 / 2**30
    assert memory_gib("cpu") == pytest.approx(total, rel=0.01)
