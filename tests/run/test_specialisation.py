"""Maps of specialisation on photographs, a clip, a document and text, against counting token by token in plain transformers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pypdfium2 as pdfium
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AriaForConditionalGeneration
from transformers.models.aria.modeling_aria import AriaTextTopKRouter

from aria_finetune.errors import UserError
from aria_finetune.material import Material, build_collator, prepare
from aria_finetune.model.vision import as_encoder_outputs, image_features
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.specialisation import MapOptions, map_experts
from aria_finetune.specialisation.counting import image_token
from aria_finetune.tiny import CHECKPOINT
from aria_finetune.training import train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
RECIPE = """
model: {{path: tiny, device: cpu, experts: fp32, dtype: float32}}
data:
  train: [{{path: {data}/photos.json}}, {{path: {data}/clip.jsonl}}, {{path: {data}/chat.jsonl}}, {{path: {papers}}}]
  image_size: 490
  max_tokens: 1200
moe: {{balance_loss: 0, z_loss: 0}}
lora: {{dropout: 0}}
train: {{learning_rate: 2e-2, max_steps: 3, gradient_accumulation_steps: 4, dataloader_num_workers: 0}}
output: {{dir: {folder}/runs/run}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("specialisation")
    papers = folder / "papers.json"
    write_document(folder / "paper.pdf")
    question = {"doc_id": "paper.pdf", "question": "What is on it?", "answer": "Photographs.", "evidence_pages": "[1]"}
    papers.write_text(json.dumps([{**question, "answer_format": "Str", "doc_type": "x", "evidence_sources": "[]"}]))
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(data=DATA, papers=papers, folder=folder))
    return load_recipe(file, [])


def write_document(path: Path) -> None:
    """Two pages, each with a bundled photograph on it."""
    document = pdfium.PdfDocument.new()
    for photo in sorted((DATA / "photos").glob("*.jpg"))[:2]:
        page = document.new_page(400, 300)
        image = pdfium.PdfImage.new(document)
        with Image.open(photo) as opened:
            image.set_bitmap(pdfium.PdfBitmap.from_pil(opened.convert("RGB").resize((160, 120))))
        image.set_matrix(pdfium.PdfMatrix().scale(300, 200).translate(50, 50))
        page.insert_obj(image)
        page.gen_content()
    document.save(str(path))


@pytest.fixture(scope="module")
def adapter(recipe: Recipe) -> Path:
    return train(recipe, Console(quiet=True)) / "adapter"


def count_one_by_one(recipe: Recipe, material: Material) -> tuple[dict[str, Counter[tuple[int, int]]], Counter[str]]:
    """Of plain Aria, row by row without padding: choices by domain, of (layer, expert); and tokens by domain."""
    model = AriaForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32, experts_implementation="eager"
    )
    chosen: list[torch.Tensor] = []
    for router in (module for module in model.modules() if isinstance(module, AriaTextTopKRouter)):
        router.register_forward_hook(lambda _, __, output: chosen.append(output[2]))
    collator = build_collator(recipe, material)
    counts: dict[str, Counter[tuple[int, int]]] = {name: Counter() for name in ("text", "image", "video", "page")}
    tokens: Counter[str] = Counter()
    for row in range(len(material.train_rows.plans)):
        batch = collator([{"row": row}])
        visual = iter(visual_kinds(material, row, int((batch["input_ids"] == image_token(model)).sum())))
        features = image_features(model, batch)
        pictures = {} if features is None else {"mm_encoder_outputs": as_encoder_outputs(features)}
        chosen.clear()
        with torch.no_grad():
            model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **pictures)
        for place, token in enumerate(batch["input_ids"][0].tolist()):
            domain = next(visual) if token == image_token(model) else "text"
            tokens[domain] += 1
            for layer, index in enumerate(chosen):
                counts[domain].update((layer, expert) for expert in index[place].tolist())
    return counts, tokens


def visual_kinds(material: Material, row: int, tokens: int) -> list[str]:
    """What each image token of a row belongs to: an image has 128 of them, a clip or a document the others."""
    parts = [part.type for message in material.plans[row].record.messages for part in message.content]
    visual = ["page" if part == "document" else part for part in parts if part != "text"]
    others = tokens - 128 * visual.count("image")
    assert sum(part != "image" for part in visual) <= 1
    return [part for part in visual for _ in range(128 if part == "image" else others)]


def test_numbers_are_those_of_counting_token_by_token(recipe: Recipe, adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps"
    report = map_experts(recipe, output, MapOptions(adapter, None, 2.0), Console(quiet=True))
    material = prepare(recipe, tmp_path / "store")
    counts, tokens = count_one_by_one(recipe, material)
    assert report["tokens"] == dict(tokens)
    assert all(count > 0 for count in tokens.values()), "a domain is missing from the data"
    assert report["rows"] == len(material.train_rows.plans)
    lines = pq.read_table(output / "experts.parquet").to_pylist()
    assert len(lines) == 2 * 2 * 4 * 64
    by_place = {(line["way"], line["layer"], line["domain"], line["expert"]): line for line in lines}
    for (way, layer, domain, expert), line in by_place.items():
        if way != "base":
            continue
        assert line["choices"] == counts[domain][layer, expert], (layer, domain, expert)
        share = counts[domain][layer, expert] / (6 * tokens[domain])
        assert line["share"] == pytest.approx(share, rel=1e-12)
        text = counts["text"][layer, expert] / (6 * tokens["text"])
        if domain != "text" and text:
            assert line["ratio"] == pytest.approx(share / text, rel=1e-9)
        if domain != "text" and not text:
            assert np.isinf(line["ratio"]) if share else np.isnan(line["ratio"])
    visual = report["ways"]["base"]["visual_experts"]["video"][1]
    assert visual == [
        expert
        for expert in range(64)
        if by_place["base", 1, "video", expert]["ratio"] >= 2
        and by_place["base", 1, "video", expert]["share"] >= 0.5 / 64
    ]
    assert set(report["ways"]["base"]["visual_experts"]) == {"image", "video", "page"}
    assert (output / "experts.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "experts.json").read_text()) == report


def test_an_adapter_is_mapped_beside_the_base(recipe: Recipe, adapter: Path, tmp_path: Path) -> None:
    report = map_experts(recipe, tmp_path / "both", MapOptions(adapter, None, 2.0), Console(quiet=True))
    map_experts(recipe, tmp_path / "base", MapOptions(None, None, 2.0), Console(quiet=True))
    both = pq.read_table(tmp_path / "both" / "experts.parquet").to_pylist()
    base = pq.read_table(tmp_path / "base" / "experts.parquet").to_pylist()
    choices = {way: [line["choices"] for line in both if line["way"] == way] for way in ("base", "adapter")}
    assert choices["base"] == [line["choices"] for line in base], "the base is not as without the adapter"
    assert choices["adapter"] != choices["base"]
    assert sum(choices["adapter"]) == sum(choices["base"])
    assert set(report["changed"]) == {"text", "image", "video", "page"}
    assert all(0 < share <= 1 for shares in report["changed"].values() for share in shares)


def test_the_base_sees_without_the_adapter_of_its_tower(recipe: Recipe, tmp_path: Path) -> None:
    """Image features that an adapter changes are computed again for the base."""
    seeing = load_recipe(recipe.file, ["lora.targets=[projector, vision]", f"output.dir={tmp_path}/run"])
    adapter = train(seeing, Console(quiet=True)) / "adapter"
    map_experts(recipe, tmp_path / "both", MapOptions(adapter, None, 2.0), Console(quiet=True))
    map_experts(recipe, tmp_path / "base", MapOptions(None, None, 2.0), Console(quiet=True))
    both = pq.read_table(tmp_path / "both" / "experts.parquet").to_pylist()
    base = pq.read_table(tmp_path / "base" / "experts.parquet").to_pylist()
    choices = {way: [line["choices"] for line in both if line["way"] == way] for way in ("base", "adapter")}
    assert choices["base"] == [line["choices"] for line in base]
    assert choices["adapter"] != choices["base"]


def test_an_adapter_of_the_tower_is_mapped_on_text_alone(recipe: Recipe, tmp_path: Path) -> None:
    seeing = load_recipe(recipe.file, ["lora.targets=[attention, vision]", f"output.dir={tmp_path}/run"])
    adapter = train(seeing, Console(quiet=True)) / "adapter"
    (tmp_path / "texts.json").write_text(json.dumps([{"instruction": "Say one.", "output": "one"}]))
    texts = load_recipe(recipe.file, [f"data.train=[{{path: {tmp_path}/texts.json}}]"])
    report = map_experts(texts, tmp_path / "maps", MapOptions(adapter), Console(quiet=True))
    assert report["tokens"]["text"] > 0 == report["tokens"]["image"]
    assert list(report["ways"]) == ["base", "adapter"]


def test_nf4_and_few_rows(recipe: Recipe, tmp_path: Path) -> None:
    nf4 = load_recipe(recipe.file, ["model.experts=nf4", "model.dtype=bfloat16"])
    report = map_experts(nf4, tmp_path / "maps", MapOptions(None, 3), Console(quiet=True))
    assert report["rows"] == 3
    assert list(report["ways"]) == ["base"]
    assert "changed" not in report


def test_text_alone_has_a_table_and_no_picture(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {word}.", "output": word} for word in ("one", "two", "three")]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    recipe = make_recipe(f"data.train=[{{path: {tmp_path}/texts.json}}]")
    report = map_experts(recipe, tmp_path / "maps", MapOptions(), Console(quiet=True))
    assert report["ways"]["base"] == {"visual_experts": {}, "shared_by_all_domains": []}
    assert not (tmp_path / "maps" / "experts.png").exists()
    assert (tmp_path / "maps" / "experts.parquet").is_file()


def test_an_output_with_other_files_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        map_experts(recipe, tmp_path, MapOptions(), Console(quiet=True))
    with pytest.raises(UserError, match="output is a file"):
        map_experts(recipe, tmp_path / "mine.txt", MapOptions(), Console(quiet=True))
