"""Rows packed into one give the loss and the gradients they give unpacked, and none learns anything of another."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file

from aria_finetune.data.chat import IGNORED
from aria_finetune.data.collation import Collator
from aria_finetune.material import Material, build_collator, prepare
from aria_finetune.model.documents import document_places
from aria_finetune.model.dropout import assign_packed_rows, assign_rows, row_seed
from aria_finetune.model.lora import adapter_state
from aria_finetune.progress import ProgressReport
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import open_run_folder
from aria_finetune.trainer import AriaTrainer
from aria_finetune.training import build_model, build_trainer, train

MakeRecipe = Callable[..., Recipe]
EXACT = ("model.experts=fp32", "model.dtype=float32")
KINDS = ("text", "images", "video", "mixed")


@pytest.fixture
def begin(tmp_path: Path) -> Callable[[Recipe], tuple[AriaTrainer, Material]]:
    """A trainer whose adapters are not zero, so that both of their matrices have gradients."""

    def make(recipe: Recipe) -> tuple[AriaTrainer, Material]:
        with open_run_folder(recipe.output_dir, overwrite=True) as run:
            material = prepare(recipe, tmp_path / "store")
            model, _ = build_model(recipe, run, material)
            generator = torch.Generator().manual_seed(7)
            for parameter in adapter_state(model).values():
                parameter.data += 0.005 * torch.randn(parameter.shape, generator=generator)
            run.began = True
            return build_trainer(recipe, run, material, model, ProgressReport(run, Console(quiet=True))), material

    return make


def rows_of(kind: str, material: Material) -> list[int]:
    """Rows that show nothing, images, or frames of a video; or some of each."""
    plans = material.train_rows.plans
    kinds = {
        "text": [row for row, plan in enumerate(plans) if not plan.sights],
        "images": [row for row, plan in enumerate(plans) if plan.sights and plan.sights[0].time is None],
        "video": [row for row, plan in enumerate(plans) if plan.sights and plan.sights[0].time is not None],
    }
    kinds["mixed"] = [*kinds["text"][:2], *kinds["images"][:2], *kinds["video"][:1]]
    return kinds[kind][:4]


def loss_and_gradients(
    trainer: AriaTrainer, collators: list[Collator], rows: list[list[int]]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the batches that the collators make of `rows`, as one optimizer step."""
    made = [collator([{"row": row} for row in batch]) for collator, batch in zip(collators, rows, strict=True)]
    labels = trainer._get_num_items_in_batch(made, torch.device("cpu"))
    trainer.model.train()
    trainer.model.zero_grad()
    loss = sum(float(trainer.training_step(trainer.model, batch, labels)) for batch in made)
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    return loss, gradients


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_same_rows_unpacked(
    kind: str, dropout: float, make_recipe: MakeRecipe, begin: Callable[..., tuple[AriaTrainer, Material]]
) -> None:
    recipe = make_recipe(*EXACT, f"lora.dropout={dropout}")
    trainer, material = begin(recipe)
    rows = rows_of(kind, material)
    assert kind == "video" or len(rows) >= 3
    if kind == "video":
        rows = rows * 2  # there is one bundled clip
    alone = build_collator(recipe, material)
    expected, due = loss_and_gradients(trainer, [alone] * len(rows), [[row] for row in rows])
    ours, found = loss_and_gradients(trainer, [build_collator(recipe, material, packed=True)], [rows])
    padded, _ = loss_and_gradients(trainer, [alone], [rows])
    assert ours == pytest.approx(expected, rel=1e-6)
    assert ours == pytest.approx(padded, rel=1e-6)
    assert found.keys() == due.keys()
    assert len(found) == 20
    difference = torch.stack([(gradient - due[name]).norm() for name, gradient in found.items()]).norm()
    whole = torch.stack([gradient.norm() for gradient in due.values()]).norm()
    assert float(difference / whole) < 1e-6


def logits_of(model: PeftModel, batch: dict[str, Any], places: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        outputs = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **places)
    logits: torch.Tensor = outputs.logits
    return logits


def test_changing_one_row_changes_no_others_logits(
    make_recipe: MakeRecipe, begin: Callable[..., tuple[AriaTrainer, Material]]
) -> None:
    recipe = make_recipe(*EXACT)
    trainer, material = begin(recipe)
    model = trainer.model.eval()
    rows = rows_of("text", material)[:3]
    batch = build_collator(recipe, material, packed=True)([{"row": row} for row in rows])
    places = document_places(batch["lengths"], "cpu")
    before = logits_of(model, batch, places)
    start, end = batch["lengths"][0], sum(batch["lengths"][:2])
    changed = copy.deepcopy(batch)
    changed["input_ids"][0, start:end] = changed["input_ids"][0, start:end].flip(0)
    after = logits_of(model, changed, places)
    difference = (after - before).abs().amax(dim=-1)[0]
    rounding = 1e-6 * float(before.norm(dim=-1).max())
    assert float(difference[:start].max()) < rounding
    assert float(difference[end:].max()) < rounding
    assert float(difference[start:end].max()) > 1e-2
    alone = build_collator(recipe, material, packed=True)([{"row": rows[2]}])
    by_itself = logits_of(model, alone, document_places(alone["lengths"], "cpu"))
    assert float((by_itself - before[:, end:]).abs().max()) < 1e-5


def test_positions_begin_anew_and_first_tokens_are_not_predicted(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    material = prepare(recipe, tmp_path / "store")
    rows = rows_of("mixed", material)
    packed = build_collator(recipe, material, packed=True)([{"row": row} for row in rows])
    padded = build_collator(recipe, material)([{"row": row} for row in rows])
    lengths = [material.train_rows.plans[row].tokens for row in rows]
    assert packed["lengths"] == lengths == padded["attention_mask"].sum(1).tolist()
    assert packed["input_ids"].shape == packed["labels"].shape == packed["position_ids"].shape == (1, sum(lengths))
    start = 0
    for number, length in enumerate(lengths):
        place = slice(start, start + length)
        assert packed["position_ids"][0, place].tolist() == list(range(length))
        assert torch.equal(packed["input_ids"][0, place], padded["input_ids"][number, :length])
        assert packed["labels"][0, start] == IGNORED
        assert torch.equal(packed["labels"][0, place][1:], padded["labels"][number, 1:length])
        start += length
    for key in ("rows", "pixels_490", "extents_490", "tile_order"):
        assert torch.equal(packed[key], padded[key]), key
    assert next(iter(packed)) == "rows", "accelerate takes the length of the first tensor for that of the batch"


def test_packed_rows_drop_what_they_drop_padded(
    make_recipe: MakeRecipe, begin: Callable[..., tuple[AriaTrainer, Material]]
) -> None:
    trainer, _ = begin(make_recipe("lora.dropout=0.5"))
    dropout = next(module for module in trainer.model.modules() if type(module).__name__ == "RowDropout").train()
    seeds = [row_seed(1, 0, row) for row in range(3)]
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    assign_rows(trainer.model, seeds, mask)
    padded = dropout(torch.ones(3, 4, 64))
    assign_packed_rows(trainer.model, seeds, [3, 4, 2])
    packed = dropout(torch.ones(1, 9, 64))
    assert torch.equal(packed[0], torch.cat([padded[0, :3], padded[1], padded[2, :2]]))
    with pytest.raises(ValueError, match="2 seed"):
        assign_packed_rows(trainer.model, seeds[:2], [3, 4, 2])


def adapter_after(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(train(recipe, Console(quiet=True)) / "adapter" / "adapter_model.safetensors")


def test_runs_with_packing_and_without_come_to_the_same(make_recipe: MakeRecipe) -> None:
    common = (*EXACT, "train.max_steps=6", "lora.dropout=0.05", "train.learning_rate=1e-4")
    packed, apart = (
        adapter_after(make_recipe(*common, f"data.packing={packing}", name=f"packing-{packing}"))
        for packing in ("true", "false")
    )
    for name, value in packed.items():
        assert float((value - apart[name]).abs().max()) < 2e-5, name


def test_evaluation_gives_the_same_mean_packed_and_padded(make_recipe: MakeRecipe) -> None:
    losses = []
    for packing in ("true", "false"):
        recipe = make_recipe(
            *EXACT,
            "train.max_steps=1",
            "data.eval_fraction=0.3",
            "train.eval_steps=1",
            f"data.packing={packing}",
            "train.per_device_eval_batch_size=3",
            name=f"eval-{packing}",
        )
        folder = train(recipe, Console(quiet=True))
        entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append(next(entry["eval_loss"] for entry in entries if "eval_loss" in entry))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
