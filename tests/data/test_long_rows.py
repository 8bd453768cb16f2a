"""A row of 65,536 tokens of real pictures, from short rows on the disk to the batch that training takes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from aria_finetune.data.chat import IGNORED
from aria_finetune.data.tiles import fit_tile
from aria_finetune.lengthening import lengthen
from aria_finetune.material import Material, build_collator, prepare
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.sources import build_batches

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
TOKENS = 65_536
IMAGE = 9


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Material]:
    """All 256 drawings, twice, in as few rows as have room; and some text, which has none."""
    folder = tmp_path_factory.mktemp("long")
    names = [DATA / "warmth-train.jsonl", DATA / "warmth-eval.jsonl"] * 2
    listed = "".join(f"    - path: {name}\n" for name in names)
    file = folder / "recipe.yaml"
    file.write_text(
        f"model: {{path: tiny, device: cpu}}\ndata:\n  train:\n{listed}  image_size: 490\n  max_tokens: {TOKENS}\n"
    )
    report = lengthen(load_recipe(file, []), folder / "set", Console(file=io.StringIO()))
    assert report["read"] == report["used"] == 512
    recipe = load_recipe(file, [f"data.train=[{{path: {folder / 'set'}}}, {{path: {DATA / 'chat.jsonl'}}}]"])
    return recipe, prepare(recipe, folder / "media")


def test_a_row_of_65536_tokens_of_pictures_is_packed_and_collated(long_rows: tuple[Recipe, Material]) -> None:
    """About 440 pictures are decoded, 300 MiB of pixels: nothing is scaled down, and nothing is made up."""
    recipe, material = long_rows
    plans = material.train_rows.plans
    long = max(range(len(plans)), key=lambda row: plans[row].tokens)
    assert TOKENS - 160 < plans[long].tokens <= TOKENS
    packs = [pack for pack in build_batches(recipe, material.train_rows) if pack]
    assert sorted(row for pack in packs for row in pack) == list(range(len(plans)))
    assert all(sum(plans[row].tokens for row in pack) <= TOKENS for pack in packs)
    assert len(packs) == 2, "the long row, and the rest of the pictures with all of the text"
    (pack,) = [pack for pack in packs if long in pack]

    batch = build_collator(recipe, material, packed=True)([{"row": row} for row in pack])
    length, images = sum(plans[row].tokens for row in pack), len(plans[long].sights)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (1, length)
    assert batch["lengths"] == [plans[row].tokens for row in pack]
    assert "attention_mask" not in batch
    assert images > 400
    assert int((batch["input_ids"] == IMAGE).sum()) == 128 * images
    assert int((batch["labels"] != IGNORED).sum()) == sum(plans[row].labels for row in pack)
    assert not ((batch["labels"] == IMAGE).any())
    assert batch["position_ids"].max() == plans[long].tokens - 1
    assert batch["pixels_490"].shape == (images, 3, 490, 490)
    assert batch["pixels_490"].dtype == torch.uint8
    for place in (0, images // 2, images - 1):
        medium = plans[long].record.media[plans[long].sights[place].media]
        due = fit_tile(Image.open(medium.path or "").convert("RGB"), 490)
        found = batch["pixels_490"][place].numpy()
        assert np.array_equal(found, due.pixels)


def test_every_answer_is_that_of_its_picture(long_rows: tuple[Recipe, Material]) -> None:
    """Warm or cool, from the files that were joined, for each of the pictures in the order in which they are shown."""
    _, material = long_rows
    known = {}
    for name in ("warmth-train.jsonl", "warmth-eval.jsonl"):
        for line in (DATA / name).read_text().splitlines():
            record = json.loads(line)
            known[record["images"][0]] = record["messages"][1]["content"][0]["text"]
    shown = 0
    for plan in material.train_rows.plans:
        if plan.record.source.format != "long":
            continue
        said = (plan.record.messages[1].content[0].text or "").splitlines()
        media = [plan.record.media[sight.media] for sight in plan.sights]
        assert said == [f"Image {n}: {known[medium.origin]}" for n, medium in enumerate(media, 1)]
        shown += len(said)
    assert shown == 512
