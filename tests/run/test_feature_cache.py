"""Runs on stored image features are the runs on pictures, bit for bit; whatever is not what it was is computed anew."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pypdfium2 as pdfium
import pytest
import torch
from PIL import Image
from rich.console import Console
from run_values import steady_metrics
from safetensors.torch import load_file, save_file
from stopping import stop_at

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.data.decoding import Decoder
from aria_finetune.errors import UserError
from aria_finetune.feature_cache import RunFeatures, run_features
from aria_finetune.features.store import FeatureStore, Form
from aria_finetune.material import prepare
from aria_finetune.model.absent import Absent
from aria_finetune.model.weight_stream import read_ahead
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.tiny import CHECKPOINT
from aria_finetune.trainer import AriaTrainer
from aria_finetune.training import train

RECIPE = """
model: {{path: tiny, device: cpu}}
data:
  train:
    - {{path: {data}/chat.jsonl}}
    - {{path: {data}/papers.json, format: mmlongbench-doc, weight: 2.0}}
  eval: {{path: {data}/eval.jsonl}}
  max_tokens: 8192
  cache_image_features: {cache}
lora: {{dropout: 0.1}}
train:
  learning_rate: 1e-3
  num_train_epochs: 1
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 1
  gradient_checkpointing: false
  dataloader_num_workers: 0
  save_strategy: epoch
  eval_strategy: epoch
output: {{dir: {output}}}
"""
PICTURES = 5 + 4 + 2
"""What `data` shows: images, frames (1 of 3 and 2 is the same), pages. One image is large."""


def noise(path: Path, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_clip(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        output.mux(stream.encode())


def make_paper(path: Path) -> None:
    document = pdfium.PdfDocument.new()
    for size in ((200, 150), (60, 90)):
        document.new_page(*size)
    document.save(str(path))


def row(*images: str, answer: str, frames: int = 0) -> dict[str, object]:
    kinds = ["image"] * len(images) + ["video"] * (frames > 0)
    asked = [*({"type": kind, "text": None} for kind in kinds), {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    clip = {"video": {"path": "a.mp4", "num_frames": frames}} if frames else {}
    return {"messages": turns, **({"images": list(images)} if images else {}), **clip}


def lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes, one of them shown in several rows, frames, pages, and text. Not to be written to."""
    folder = tmp_path_factory.mktemp("data")
    for number, size in enumerate([(60, 40), (40, 60), (500, 200), (64, 64), (120, 80)]):
        noise(folder / f"{number}.png", size, number)
    make_clip(folder / "a.mp4", 1)
    make_paper(folder / "paper.pdf")
    rows = [
        row("0.png", answer="zero"),
        row("1.png", "0.png", answer="one and zero"),
        row("2.png", "3.png", answer="large and square"),
        row(answer="three frames", frames=3),
        row("0.png", answer="some of them", frames=2),
        row(answer="text alone"),
    ]
    lines(folder / "chat.jsonl", rows)
    lines(folder / "eval.jsonl", [row("4.png", answer="unseen"), row("0.png", answer="seen"), row(answer="none")])
    asked = {"doc_id": "paper.pdf", "question": "What is in it?", "answer": "Nothing.", "evidence_pages": "[1]",
             "answer_format": "Str", "doc_type": "x", "evidence_sources": "[]"}  # fmt: skip
    (folder / "papers.json").write_text(json.dumps([asked]))
    return folder


Make = Callable[..., Recipe]


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Make:
    def made(name: str, *overrides: str, cache: str | bool = True, folder: Path | None = None) -> Recipe:
        file = tmp_path / f"{name}.yaml"
        cached = str(cache).lower() if isinstance(cache, bool) else cache
        output = tmp_path / "runs" / name
        file.write_text(RECIPE.format(data=folder or data, cache=cached, output=output))
        return load_recipe(file, overrides)

    return made


def run(recipe: Recipe, **options: Any) -> tuple[Path, str]:
    said = io.StringIO()
    return train(recipe, Console(file=said, width=400), **options), said.getvalue()


def described(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def assert_equal(one: Path, other: Path) -> None:
    assert steady_metrics(one) == steady_metrics(other)
    assert any("eval_loss" in entry for entry in steady_metrics(one))
    adapters = [(folder / "adapter/adapter_model.safetensors").read_bytes() for folder in (one, other)]
    assert adapters[0] == adapters[1]
    assert described(one)["seen"] == described(other)["seen"]


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a picture is decoded")

    monkeypatch.setattr(Decoder, "_ask", refuse)


def weights_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of all weights that are read from now on."""
    names: set[str] = set()

    def watched(checkpoint: Any, heights: Any) -> Any:
        for piece in read_ahead(checkpoint, heights):
            names.add(piece.name.split(".")[0])
            yield piece

    monkeypatch.setattr("aria_finetune.model.loading.read_ahead", watched)
    return names


@pytest.fixture(scope="module")
def live(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run on pictures, made once for the same settings."""
    folder, runs = tmp_path_factory.mktemp("live"), {}

    def of(*overrides: str) -> Path:
        if overrides not in runs:
            file = folder / f"{len(runs)}.yaml"
            file.write_text(RECIPE.format(data=data, cache="false", output=folder / str(len(runs))))
            runs[overrides] = run(load_recipe(file, overrides))[0]
        return runs[overrides]

    return of


def damage(folder: Path) -> Path:
    """Change a bit of the largest file's features; which file that is."""
    large = max(folder.glob("*/*.safetensors"), key=lambda file: (file.stat().st_size, file.name))
    content = bytearray(large.read_bytes())
    content[-1] ^= 1
    large.write_bytes(content)
    return large


def computed(recipe: Recipe, store: Path) -> int:
    """How many features a run computes before it begins."""
    with run_features(recipe, prepare(recipe, store / "media"), Console(file=io.StringIO())) as features:
        assert features is not None
        assert features.pictures == features.describe()["pictures"]
        assert all(features.stored.store.read(key, form).shape == form.shape for key, form in forms(features).items())
        return features.computed


def forms(features: RunFeatures) -> dict[str, Form]:
    """Keys and forms of all that lies in the folder and can be of this run, by its tokens."""
    stored = features.stored
    made = [Form((tiles, tokens, stored.forms.hidden), stored.forms.dtype) for tiles in (1, 3) for tokens in (128, 256)]
    return {key: form for key in stored.store.entries() for form in made if stored.store.holds(key, form)}


def contents(store: Path) -> dict[str, bytes]:
    """Bytes of all features by their keys, without the files' headers, whose fields come in any order."""
    files = {path.stem: path.read_bytes() for path in store.glob("*/*.safetensors")}
    return {key: file[8 + int.from_bytes(file[:8], "little") :] for key, file in files.items()}


@pytest.fixture(scope="module")
def filled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of a run with the settings of the recipe. Not to be written to."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data, cache=folder / "features", output=folder / "run"))
    assert computed(load_recipe(folder / "recipe.yaml", []), folder) == PICTURES
    return folder / "features"


@pytest.fixture
def kept(filled: Path, tmp_path: Path) -> str:
    """A copy of them."""
    shutil.copytree(filled, tmp_path / "kept")
    return str(tmp_path / "kept")


WAYS = {
    "auto": (),
    "split": ("data.split_images=true", "data.image_size=490"),
    "fp32": ("model.experts=fp32", "data.image_size=490"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_losses_and_the_same_adapter(
    make: Make, live: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    first, said = run(make("first", *WAYS[way]))
    assert_equal(first, live(*WAYS[way]))
    parts = {part["name"] for part in described(live(*WAYS[way]))["components"]}
    assert parts - {part["name"] for part in described(first)["components"]} == {"vision tower", "projector"}
    assert f"image features of {PICTURES} pictures" in said
    assert f"0 are there, {PICTURES} are computed now" in said
    kept = described(first)["image_features"]
    store = FeatureStore(Path(kept["folder"]))
    assert store.folder == first.parent / "image-features"
    assert (kept["pictures"], kept["computed"]) == (len(store.entries()), PICTURES) == (PICTURES, PICTURES)
    if way != "auto":
        return
    no_decoding(monkeypatch)
    names = weights_read(monkeypatch)
    again, said = run(make("again", *WAYS[way]))
    assert f"{PICTURES} are there, 0 are computed now" in said
    assert names == {"language_model"}
    assert_equal(again, first)


def test_with_workers_the_same(
    make: Make, live: Callable[..., Path], filled: Path, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = "train.dataloader_num_workers=2"
    assert computed(make("filling", workers), tmp_path) == PICTURES
    assert contents(tmp_path / "runs/image-features") == contents(filled)
    on_pictures = live()
    no_decoding(monkeypatch)
    assert_equal(run(make("run", workers, cache=kept))[0], on_pictures)


def test_the_tower_is_gone_while_training(make: Make, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, towers = AriaTrainer.training_step, []

    def step(self: AriaTrainer, model: Any, inputs: Any, *args: Any) -> Any:
        towers.append(model.get_base_model().model.vision_tower)
        assert not {"pixels_490", "pixels_980"} & set(inputs)
        return original(self, model, inputs, *args)

    monkeypatch.setattr(AriaTrainer, "training_step", step)
    run(make("run", "train.max_steps=1", "train.eval_strategy=no", cache=kept))
    assert len(towers) == 1
    assert isinstance(towers[0], Absent)


@pytest.mark.parametrize(("before", "after"), [(True, True), (False, True), (True, False)])
def test_a_run_goes_on_with_features_or_without(
    make: Make, live: Callable[..., Path], kept: str, monkeypatch: pytest.MonkeyPatch, before: bool, after: bool
) -> None:
    stop_at(monkeypatch, make("run", cache=kept if before else False), 2)
    folder, said = run(make("run", cache=kept if after else False), resume=True)
    assert "going on from checkpoint-2" in said
    assert_equal(folder, live())
    if before and after:
        assert f"{PICTURES} are there, 0 are computed now" in said


def test_only_what_the_run_comes_to_is_computed(make: Make) -> None:
    """Two rows in one step, and no evaluation; the features of the others would be for nobody."""
    few = ("train.max_steps=1", "train.eval_strategy=no")
    folder, _ = run(make("run", *few))
    assert 0 < described(folder)["image_features"]["computed"] < PICTURES - 2
    plain, _ = run(make("plain", *few, cache=False))
    assert steady_metrics(folder) == steady_metrics(plain)


class TestWhatChanged:
    @pytest.fixture
    def own(self, data: Path, tmp_path: Path) -> Path:
        """Data that may be written to."""
        shutil.copytree(data, tmp_path / "own")
        return tmp_path / "own"

    @pytest.mark.parametrize("same", ["size and time", "name"])
    def test_another_picture_under_the_same_name(
        self, make: Make, kept: str, own: Path, tmp_path: Path, same: str
    ) -> None:
        assert computed(make("before", cache=kept, folder=own), tmp_path) == 0
        status = (own / "0.png").stat()
        noise(own / "0.png", (60, 40), seed=99)
        if same == "size and time":
            content = (own / "0.png").read_bytes()
            assert len(content) <= status.st_size
            (own / "0.png").write_bytes(content + bytes(status.st_size - len(content)))
            os.utime(own / "0.png", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert computed(make("after", cache=kept, folder=own), tmp_path) == 1
        assert computed(make("anew", folder=own), tmp_path) == PICTURES
        assert contents(tmp_path / "runs/image-features").items() <= contents(Path(kept)).items()

    def test_another_clip_and_another_paper(self, make: Make, kept: str, own: Path, tmp_path: Path) -> None:
        make_clip(own / "a.mp4", 99)
        with (own / "paper.pdf").open("ab") as file:
            file.write(b"\n")
        assert computed(make("after", cache=kept, folder=own), tmp_path) == 4 + 2

    def test_the_same_pictures_elsewhere_are_known(self, make: Make, kept: str, own: Path, tmp_path: Path) -> None:
        convert(own / "chat.jsonl", own / "converted", ConversionOptions())
        sources = f"data.train=[{{path: {own}/converted}}, {{path: {own}/papers.json, format: mmlongbench-doc}}]"
        assert computed(make("after", sources, cache=kept), tmp_path) == 0

    @pytest.mark.parametrize(
        ("change", "anew"),
        [
            ("data.image_size=980", PICTURES - 1),
            ("model.dtype=float32", PICTURES),
            ("data.split_images=true", 5),
            ("data.max_pixels=9999999", 5),
        ],
    )
    def test_another_size_or_precision(self, make: Make, kept: str, tmp_path: Path, change: str, anew: int) -> None:
        """One image is large and shown at 980 already; frames and pages are never split or judged by `max_pixels`."""
        assert computed(make("after", change, cache=kept), tmp_path) == anew
        assert computed(make("before again", cache=kept), tmp_path) == 0

    def test_another_checkpoint(self, make: Make, kept: str, tmp_path: Path) -> None:
        shutil.copytree(CHECKPOINT, tmp_path / "aria")
        weights = load_file(tmp_path / "aria/model.safetensors")
        for name in ("language_model.lm_head.weight", "multi_modal_projector.query"):
            weights[name].view(torch.int16).reshape(-1)[0] ^= 1
            save_file(weights, tmp_path / "aria/model.safetensors", metadata={"format": "pt"})
            expected = PICTURES if "projector" in name else 0
            assert computed(make("after", f"model.path={tmp_path / 'aria'}", cache=kept), tmp_path) == expected

    def test_a_file_cut_short_is_computed_again(self, make: Make, filled: Path, kept: str, tmp_path: Path) -> None:
        files = sorted(Path(kept).glob("*/*.safetensors"))
        os.truncate(files[0], files[0].stat().st_size // 2)
        os.truncate(files[1], 0)
        files[2].unlink()
        assert computed(make("again", cache=kept), tmp_path) == 3
        assert contents(Path(kept)) == contents(filled)

    def test_a_damaged_file_is_found_before_training_and_computed_again(
        self, make: Make, live: Callable[..., Path], kept: str, filled: Path
    ) -> None:
        large = damage(Path(kept))
        folder, said = run(make("run", cache=kept))
        assert f"damaged, and computed again: {large}" in said
        assert f"{PICTURES - 1} are there, 1 are computed now" in said
        assert contents(Path(kept)) == contents(filled)
        assert_equal(folder, live())

    def test_one_that_is_damaged_while_training_runs_ends_it(
        self, make: Make, live: Callable[..., Path], kept: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Path] = []

        def begin(self: AriaTrainer) -> None:
            seen.append(damage(Path(kept)))
            original(self)

        original = AriaTrainer.begin
        monkeypatch.setattr(AriaTrainer, "begin", begin)
        with pytest.raises(UserError, match=r"image features of .*2\.png can't be used: the file is damaged") as told:
            run(make("run", cache=kept))
        monkeypatch.undo()
        assert [told.value.where] == list(map(str, seen))
        assert "--resume" in (told.value.fix or "")
        folder, said = run(make("run", cache=kept), resume=True)
        assert f"{PICTURES - 1} are there, 1 are computed now" in said
        assert_equal(folder, live())

    def test_a_file_that_changes_while_it_is_decoded(
        self, make: Make, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is stored under a hash must have been made of the bytes with that hash."""
        original = Decoder.image

        def image(self: Decoder, path: Path, *args: Any, **kwargs: Any) -> Any:
            if path.name == "0.png":
                noise(path, (60, 40), seed=99)
            return original(self, path, *args, **kwargs)

        monkeypatch.setattr(Decoder, "image", image)
        recipe = make("run", folder=own)
        with pytest.raises(UserError, match="no longer the file that it was when the run started"):
            computed(recipe, tmp_path)
        monkeypatch.undo()
        assert 0 < computed(recipe, tmp_path) <= PICTURES
        assert computed(make("again", folder=own), tmp_path) == 0


class TestRefusals:
    def test_features_that_exceed_the_limit(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        names = weights_read(monkeypatch)
        with pytest.raises(UserError, match=r"this run need .* bytes\), and data.cache_limit_gib allows .* bytes\)"):
            run(make("run", "data.cache_limit_gib=0.0001"))
        assert names == set(), "the refusal comes after weights were read"

    def test_room_is_made_by_what_other_runs_left(self, make: Make, kept: str, tmp_path: Path) -> None:
        large, limit = ("data.image_size=980",), 600_000
        assert computed(make("second", "data.split_images=true", "data.image_size=490", cache=kept), tmp_path) > 0
        third = make("third", *large, f"data.cache_limit_gib={limit / 2**30}", cache=kept)
        assert computed(third, tmp_path) == PICTURES - 1
        entries = FeatureStore(Path(kept)).entries()
        assert sum(entry.bytes for entry in entries.values()) <= limit
        assert len(entries) > PICTURES, "more went than was in the way"
        assert computed(third, tmp_path) == 0

    @pytest.mark.parametrize("place", ["runs/run", "runs/run/features"])
    def test_a_folder_inside_the_run(self, make: Make, tmp_path: Path, place: str) -> None:
        with pytest.raises(UserError, match="the run's own folder"):
            run(make("run", cache=str(tmp_path / place)))
        assert not (tmp_path / "runs").exists()

    def test_a_picture_that_cannot_be_decoded_is_skipped_wherever_it_is_shown(
        self, make: Make, kept: str, data: Path, tmp_path: Path
    ) -> None:
        """Other rows that show it are found out too, though it is decoded ahead for the first of them alone."""
        shutil.copytree(data, tmp_path / "own")
        picture = tmp_path / "own" / "0.png"
        picture.write_bytes(picture.read_bytes()[:-40])  # its header is sound
        skip = "data.on_bad_media=skip"
        plain, _ = run(make("plain", skip, cache=False, folder=tmp_path / "own"))
        cached, _ = run(make("cached", skip, cache=kept, folder=tmp_path / "own"))
        entries = [json.loads(line) for line in (cached / "skipped.jsonl").read_text().splitlines()]
        assert {(entry["training"], entry["where"]) for entry in entries} == {
            *((True, f"chat.jsonl:{row}") for row in (0, 1, 4)),
            (False, "eval.jsonl:1"),
        }
        assert (cached / "skipped.jsonl").read_text() == (plain / "skipped.jsonl").read_text()
        assert_equal(cached, plain)
        assert described(cached)["image_features"]["computed"] == 0

    def test_a_picture_that_cannot_be_decoded_is_named(self, make: Make, data: Path, tmp_path: Path) -> None:
        shutil.copytree(data, tmp_path / "own")
        picture = tmp_path / "own" / "1.png"
        picture.write_bytes(picture.read_bytes()[:-40])  # its header is sound
        with pytest.raises(UserError, match=f"{picture}: media_unreadable") as told:
            run(make("run", folder=tmp_path / "own"))
        assert told.value.where == "chat.jsonl:1"
        assert not (tmp_path / "runs" / "run").exists()
        shutil.copy(data / "1.png", picture)
        folder, _ = run(make("run", folder=tmp_path / "own"))
        assert described(folder)["image_features"]["computed"] < PICTURES, "what was computed is kept"
