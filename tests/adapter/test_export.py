"""An exported folder holds the adapter and its processor, and nothing else that a run leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AriaForConditionalGeneration, AutoTokenizer
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

from aria_finetune.adapter.export import export
from aria_finetune.adapter.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from aria_finetune.errors import UserError

COPIED = {
    ADAPTER_WEIGHTS,
    "base.json",
    "chat_template.jinja",
    "processor_config.json",
    "rope.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def run(adapter: Path, tmp_path: Path) -> Path:
    """The folder of a run, with what a trainer may leave in it."""
    folder = tmp_path / "run"
    shutil.copytree(adapter, folder / "adapter")
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin", "README.md", "notes.json"):
        (folder / "adapter" / name).write_text("of the run")
    (folder / "adapter" / "checkpoint-1").mkdir()
    return folder


@pytest.mark.parametrize("given", ["run", "adapter"])
def test_only_what_is_needed_is_written(run: Path, tmp_path: Path, given: str) -> None:
    written = export(run if given == "run" else run / "adapter", tmp_path / "out")
    assert written == sorted(COPIED | {ADAPTER_CONFIG, "README.md"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    for name in COPIED:
        assert (tmp_path / "out" / name).read_bytes() == (run / "adapter" / name).read_bytes()
    assert not list(tmp_path.glob(".out*"))


def test_the_base_can_be_renamed(run: Path, tmp_path: Path, tiny_folder: Path) -> None:
    before = json.loads((run / "adapter" / ADAPTER_CONFIG).read_text())
    export(run, tmp_path / "same")
    assert json.loads((tmp_path / "same" / ADAPTER_CONFIG).read_text()) == before
    assert before["base_model_name_or_path"] == str(tiny_folder)
    export(run, tmp_path / "other", base="rhymes-ai/Aria")
    renamed = json.loads((tmp_path / "other" / ADAPTER_CONFIG).read_text())
    assert renamed == before | {"base_model_name_or_path": "rhymes-ai/Aria"}


def test_plain_peft_and_transformers_load_it(run: Path, tmp_path: Path, tiny_folder: Path) -> None:
    export(run, tmp_path / "out", base="rhymes-ai/Aria")
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("Which colour is it?", return_tensors="pt").input_ids
    assert AriaImageProcessorPil.from_pretrained(tmp_path / "out").max_image_size == 980

    def logits(folder: Path) -> torch.Tensor:
        model = AriaForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.float32)
        with torch.no_grad():
            return PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).logits

    assert torch.equal(logits(tmp_path / "out"), logits(run / "adapter"))


def test_an_existing_output_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError, match="at the output already") as caught:
        export(run, tmp_path / "out")
    assert caught.value.where == str(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("file", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
def test_a_damaged_adapter_is_not_handed_on(run: Path, tmp_path: Path, file: str) -> None:
    (run / "adapter" / file).write_bytes(b"{")
    with pytest.raises(UserError):
        export(run / "adapter", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_adapter_without_processor_files_is_exported_alone(run: Path, tmp_path: Path) -> None:
    for name in COPIED - {ADAPTER_WEIGHTS}:
        (run / "adapter" / name).unlink()
    assert export(run, tmp_path / "deep" / "out") == ["README.md", ADAPTER_CONFIG, ADAPTER_WEIGHTS]
