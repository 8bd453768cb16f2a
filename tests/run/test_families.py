"""One format of each family from a source through `convert` into a training run of the tiny Aria."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pypdfium2 as pdfium
import pytest
from PIL import Image
from rich.console import Console

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.data_formats.registry import FAMILIES
from aria_finetune.recipe import load_recipe
from aria_finetune.training import train


def write_media(folder: Path) -> None:
    folder.mkdir()
    for number, colour in enumerate(["red", "green"]):
        Image.new("RGB", (60, 40), colour).save(folder / f"{number}.png")
    with av.open(str(folder / "clip.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * number, np.uint8), "rgb24")))
        output.mux(stream.encode())
    document = pdfium.PdfDocument.new()
    for _ in range(2):
        document.new_page(300, 400)
    document.save(str(folder / "paper.pdf"))


NEXTQA = (
    "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    "clip,5,64,48,what gets brighter,1,0,DO,cat,wall,dog,sun,tree\n"
)
SOURCES: dict[str, tuple[str, str, str, int]] = {
    "chat": (
        "llava",
        "chat.json",
        json.dumps([{"image": "0.png", "conversations": [
            {"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": "Red."}]}]),
        1,
    ),
    "questions": (
        "chartqa",
        "questions.json",
        json.dumps([{"imgname": f"{n}.png", "query": "Which colour?", "label": colour}
                    for n, colour in enumerate(["red", "green"])]),
        2,
    ),
    "captions": (
        "coco-captions",
        "captions.json",
        json.dumps({"images": [{"id": 7, "file_name": "1.png", "width": 60, "height": 40}],
                    "annotations": [{"id": 1, "image_id": 7, "caption": "A green field."}]}),
        1,
    ),
    "video": (
        "nextqa",
        "val.csv",
        NEXTQA,
        1,
    ),
    "documents": (
        "mmlongbench-doc",
        "papers.json",
        json.dumps([{"doc_id": "paper.pdf", "question": "What is in it?", "answer": "Nothing.",
                     "evidence_pages": "[1]", "answer_format": "Str", "doc_type": "x", "evidence_sources": "[]"}]),
        1,
    ),
    "tables": ("columns", "table.csv", "question,answer\nTwo and two?,4\nOne and one?,2\n", 2),
}  # fmt: skip


def test_every_family_is_here() -> None:
    assert set(SOURCES) == set(FAMILIES)
    assert all(SOURCES[family][0] in {form.name for form in FAMILIES[family]} for family in FAMILIES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    write_media(folder / "sources")
    for name, (_, file, content, _) in SOURCES.items():
        (folder / "sources" / file).write_text(content)
        convert(folder / "sources" / file, folder / name, ConversionOptions())
    return folder


def recipe(folder: Path, sources: list[Path]) -> Path:
    listed = "".join(f"    - {{path: {path}}}\n" for path in sources)
    (folder / "recipe.yaml").write_text(
        f"model: {{path: tiny, device: cpu}}\ndata:\n  train:\n{listed}  image_size: 490\n  num_frames: 2\n"
        "train: {num_train_epochs: 1, per_device_train_batch_size: 1, gradient_accumulation_steps: 1,\n"
        "  dataloader_num_workers: 0, save_strategy: 'no', logging_steps: 1}\n"
        f"output: {{dir: {folder / 'run'}, overwrite: true}}\n"
    )
    return folder / "recipe.yaml"


@pytest.mark.parametrize("converted", [True, False], ids=["converted", "as they are"])
def test_a_run_over_all_of_them(folder: Path, converted: bool) -> None:
    files = [folder / name if converted else folder / "sources" / SOURCES[name][1] for name in SOURCES]
    run = train(load_recipe(recipe(folder, files), []), Console(file=io.StringIO()))
    described = json.loads((run / "run.json").read_text())
    rows = sum(count for *_, count in SOURCES.values())
    assert described["seen"]["rows"] == rows
    # 1 + 2 + 1 images, 2 frames, 2 pages
    assert described["seen"]["tiles"] == 8
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len([loss for loss in losses if loss is not None]) == rows
    for name, (form, *_) in SOURCES.items():
        report = json.loads((folder / name / "report.json").read_text())
        assert report["formats"] == {form: report["written"]}
        assert report["rejected"] == 0
