"""What a run comes to follows from its seed and its rows, not from how the rows are loaded or cut into batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from aria_finetune.data.dataset import EpochOrder
from aria_finetune.material import prepare
from aria_finetune.model.dropout import RowDropout, row_seed
from aria_finetune.recipe import Recipe
from aria_finetune.training import train

MakeRecipe = Callable[..., Recipe]
# An epoch of 3 photographs, 2 clips, 3 texts and 4 drawings, so that its last step has half the rows of the others.
EPOCH = ("data.train.0.weight=0.75", "data.train.2.weight=0.6", "data.train.3.weight=0.021")
ROWS_PER_EPOCH = 12


@dataclass(frozen=True)
class Outcome:
    """What a run logged and left."""

    losses: list[float]
    adapter: dict[str, torch.Tensor]
    sha256: str
    rows: int


def outcome(recipe: Recipe) -> Outcome:
    run = train(recipe, Console(quiet=True))
    weights = run / "adapter" / "adapter_model.safetensors"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Outcome(
        losses=[entry["loss"] for entry in metrics if "loss" in entry],
        adapter=load_file(weights),
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        rows=json.loads((run / "run.json").read_text())["seen"]["rows"],
    )


@pytest.fixture
def seeds(soak: bool) -> list[int]:
    return list(range(10)) if soak else [42]


def test_loader_workers_change_no_bit(make_recipe: MakeRecipe, seeds: list[int]) -> None:
    adapters = set()
    for seed in seeds:
        outcomes = [
            outcome(
                make_recipe(
                    *EPOCH,
                    f"train.seed={seed}",
                    f"train.dataloader_num_workers={workers}",
                    "lora.dropout=0.1",
                    "train.max_steps=6",
                    name=f"seed-{seed}-workers-{workers}",
                )
            )
            for workers in (0, 2, 4)
        ]
        assert [len(each.losses) for each in outcomes] == [6, 6, 6]
        assert outcomes[0].rows == 2 * ROWS_PER_EPOCH, "the runs cross from one epoch to the next"
        assert outcomes[0].losses == outcomes[1].losses == outcomes[2].losses
        assert outcomes[0].sha256 == outcomes[1].sha256 == outcomes[2].sha256
        adapters.add(outcomes[0].sha256)
    assert len(adapters) == len(seeds)


def test_batches_and_accumulation_are_the_same_within_1e_6(
    make_recipe: MakeRecipe, fp32_folder: Path, seeds: list[int], soak: bool
) -> None:
    """At the learning rate that recipes have by default.

    Both add up the same numbers in another order, so that gradients differ in their last bits. Adam divides by a
    gradient's own size: where that is no larger than its epsilon of 1e-8, the last bits decide how far an entry moves,
    and a learning rate of 1e-3 puts one entry in some 40,000 further than 1e-6 apart (up to 8e-6).
    """
    for seed, dropout in product(seeds, ("0", "0.1") if soak else ("0.1",)):
        ones, eights = (
            outcome(
                make_recipe(
                    *EPOCH,
                    f"model.path={fp32_folder}",
                    "model.experts=fp32",
                    f"train.seed={seed}",
                    f"lora.dropout={dropout}",
                    "train.learning_rate=5e-5",
                    "train.max_steps=4",
                    f"train.per_device_train_batch_size={batch}",
                    f"train.gradient_accumulation_steps={8 // batch}",
                    name=f"seed-{seed}-dropout-{dropout}-batch-{batch}",
                )
            )
            for batch in (1, 8)
        )
        assert ones.rows == eights.rows == 2 * ROWS_PER_EPOCH
        # Relative: losses are about 8, where two neighbours in fp32 lie 9.5e-7 apart.
        assert ones.losses == pytest.approx(eights.losses, rel=1e-6, abs=0)
        assert ones.adapter.keys() == eights.adapter.keys()
        for name, tensor in ones.adapter.items():
            assert (tensor - eights.adapter[name]).abs().max() <= 1e-6, name
            assert "lora_A" in name or tensor.abs().max() > 5e-5, f"{name} has hardly moved from zero"


def test_every_row_draws_from_its_own_seed_in_every_epoch(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(*EPOCH, "lora.dropout=0.1", "train.max_steps=6", "train.gradient_checkpointing=false")
    drawn: list[int] = []

    def look(module: nn.Module, _: object) -> None:
        if isinstance(module, RowDropout) and module.number == 0 and module.training:
            drawn.extend(segment.seed for segment in module.rows._segments)

    handle = register_module_forward_pre_hook(look)
    try:
        train(recipe, Console(quiet=True))
    finally:
        handle.remove()

    material = prepare(recipe, tmp_path / "store")
    order = EpochOrder(material.train_rows.spans, material.train_rows.weights, recipe.train.seed)
    expected = []
    for epoch in range(2):
        order.set_epoch(epoch)
        expected += [row_seed(recipe.train.seed, epoch, row) for row in order]
    assert drawn == expected
    assert len(set(drawn)) == 2 * ROWS_PER_EPOCH
