"""A checkpoint folder is read tensor by tensor, or refused by the name of what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AriaForConditionalGeneration

from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import INDEX, SINGLE, checkpoint_folder, open_checkpoint
from aria_finetune.tiny import CHECKPOINT


@pytest.fixture
def sharded(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint in several files with an index, as transformers writes them."""
    folder = tmp_path / "sharded"
    AriaForConditionalGeneration.from_pretrained(tiny_folder).save_pretrained(folder, max_shard_size="1MB")
    return folder


def index_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder: Path, files: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def refusal(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        open_checkpoint(str(folder))
    assert str(folder) in str(caught.value)
    return caught.value


def test_a_single_file_is_read_as_it_is(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    stored = load_file(tiny_folder / SINGLE)
    assert checkpoint.shards == [SINGLE]
    assert set(checkpoint.files) == set(stored)
    assert checkpoint.config == json.loads((tiny_folder / "config.json").read_text())
    for name in ("language_model.model.layers.1.mlp.router.weight", "multi_modal_projector.query"):
        assert checkpoint.read(name).dtype == torch.bfloat16
        assert torch.equal(checkpoint.read(name), stored[name])


def test_shards_are_read_through_their_index(sharded: Path, tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(sharded))
    assert len(checkpoint.shards) > 2
    assert checkpoint.files == index_of(sharded)
    stored = load_file(tiny_folder / SINGLE)
    read = {name: tensor for shard in checkpoint.shards for name, tensor in checkpoint.tensors(shard)}
    assert set(read) == set(stored)
    assert all(torch.equal(read[name], stored[name]) for name in stored)
    assert all(torch.equal(checkpoint.read(name), stored[name]) for name in stored)


def test_an_unknown_tensor_is_a_key_error(tiny_folder: Path) -> None:
    with pytest.raises(KeyError):
        open_checkpoint(str(tiny_folder)).read("no.such.weight")


def test_the_word_tiny_is_the_packaged_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("tiny").folder == CHECKPOINT


def test_a_folder_may_be_relative_or_in_the_home(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    assert checkpoint_folder("aria") == Path("aria")
    assert checkpoint_folder("./aria") == Path("aria")
    monkeypatch.setenv("HOME", str(copied.parent))
    assert checkpoint_folder("~/aria") == copied


@pytest.mark.parametrize("path", ["no/such", "no-such/model-at-all"])
def test_what_is_neither_a_folder_nor_in_reach_is_named(path: str) -> None:
    with pytest.raises(UserError, match=f"{path} is neither a folder here nor a model that can be fetched") as caught:
        open_checkpoint(path)
    assert "HF_TOKEN" in str(caught.value.fix)


@pytest.mark.parametrize("path", ["/no/such", "./no/such", "../no", "~/no-such-folder", "word", "a/b/c"])
def test_what_can_only_be_a_folder_is_not_looked_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*args: object, **kwargs: object) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr("aria_finetune.model.hub_layout.snapshot_download", fetched)
    with pytest.raises(UserError, match=f"no such checkpoint folder: {path}"):
        open_checkpoint(path)


def test_a_folder_without_config(copied: Path) -> None:
    (copied / "config.json").unlink()
    assert "config.json is missing" in str(refusal(copied))


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), ("[1]", "not a JSON object"), ("", "not valid")])
def test_a_damaged_config(copied: Path, text: str, said: str) -> None:
    (copied / "config.json").write_text(text)
    error = refusal(copied)
    assert said in error.message
    assert "config.json" in str(error.where)


@pytest.mark.parametrize("kind", ["llava", None])
def test_another_architecture(copied: Path, kind: str | None) -> None:
    config = json.loads((copied / "config.json").read_text()) | {"model_type": kind}
    (copied / "config.json").write_text(json.dumps(config))
    assert f"model_type {kind!r}" in refusal(copied).message


def test_pickled_weights_are_named_and_not_opened(copied: Path) -> None:
    (copied / SINGLE).rename(copied / "pytorch_model.bin")
    error = refusal(copied)
    assert "pytorch_model.bin is pickle, which is never opened" in error.message
    assert "safetensors" in str(error.fix)


def test_no_weights_at_all(copied: Path) -> None:
    (copied / SINGLE).unlink()
    assert f"no {SINGLE} and no {INDEX}" in refusal(copied).message


def test_a_missing_shard(sharded: Path) -> None:
    gone = open_checkpoint(str(sharded)).shards[1]
    (sharded / gone).unlink()
    assert f"1 shard(s) named by {INDEX} are missing: {gone}" in refusal(sharded).message


def test_a_shard_that_lacks_a_tensor(sharded: Path) -> None:
    files = index_of(sharded)
    shard = min(files.values())
    tensors = load_file(sharded / shard)
    lost = min(tensors)
    del tensors[lost]
    save_file(tensors, sharded / shard)
    error = refusal(sharded)
    assert f"1 tensor(s) are not in the shard that {INDEX} names, such as {lost}" in error.message
    assert str(error.where).endswith(shard)


@pytest.mark.parametrize("kept", [0.5, 0.001, 0.0])
@pytest.mark.parametrize("many", [True, False])
def test_a_truncated_shard(sharded: Path, copied: Path, many: bool, kept: float) -> None:
    folder = sharded if many else copied
    shard = folder / open_checkpoint(str(folder)).shards[-1]
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * kept)])
    error = refusal(folder)
    assert "the shard can't be read" in error.message
    assert error.where == str(shard)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_an_index_that_names_nothing(copied: Path, text: str) -> None:
    (copied / INDEX).write_text(text)
    assert "the index names no tensor" in refusal(copied).message


@pytest.mark.parametrize("name", ["../model.safetensors", "/srv/model.safetensors", "sub/model.safetensors", 7])
def test_an_index_that_leads_out_of_its_folder(copied: Path, name: object) -> None:
    (copied / "sub").mkdir()
    for place in (copied.parent, copied / "sub"):
        shutil.copyfile(copied / SINGLE, place / SINGLE)
    write_index(copied, {"language_model.lm_head.weight": name})
    error = refusal(copied)
    assert str(name) in error.message
    assert "not in its folder" in error.message


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        (
            "vision_tower.encoder.layers.0.layer_norm1.bias",
            "vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
        ),
        ("multi_modal_projector.cross_attn.layer_norm_kv.bias", "multi_modal_projector.cross_attn.ln_kv.bias"),
        ("multi_modal_projector.feed_forward.linear_in.weight", "multi_modal_projector.ffn.linear_in.weight"),
        ("multi_modal_projector.layer_norm.bias", "multi_modal_projector.ln_ffn.bias"),
    ],
)
def test_the_raw_layout(copied: Path, name: str, raw: str) -> None:
    tensors = load_file(copied / SINGLE)
    tensors[raw] = tensors.pop(name)
    save_file(tensors, copied / SINGLE)
    error = refusal(copied)
    assert "older raw layout" in error.message
    assert raw in error.message
