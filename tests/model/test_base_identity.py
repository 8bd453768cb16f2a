"""Weights are known by their values: the same in any dtype and any number of files, others wherever they differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import (
    BASE_FILE,
    BaseIdentity,
    fingerprint_values,
    identity_of,
    read_identity,
    write_identity,
)
from aria_finetune.model.hub_layout import INDEX, SINGLE, open_checkpoint
from aria_finetune.provenance import hash_file
from aria_finetune.quantization import quantize


def fingerprint(folder: Path) -> str:
    return fingerprint_values(open_checkpoint(str(folder)))


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_the_same_values_in_another_dtype_and_in_other_files(
    tiny_folder: Path, fp32_folder: Path, copied: Path
) -> None:
    assert fingerprint(fp32_folder) == fingerprint(tiny_folder)
    tensors = load_file(copied / SINGLE)
    (copied / SINGLE).unlink()
    weight_map = {}
    for number, name in enumerate(sorted(tensors, reverse=True)):
        weight_map[name] = f"part-{number % 3}.safetensors"
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, copied / file)
    (copied / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert fingerprint(copied) == fingerprint(tiny_folder)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.1.mlp.router.weight",
        "language_model.model.layers.0.mlp.experts.fc2.weight",
        "language_model.model.norm.weight",
        "vision_tower.embeddings.patch_embedding.weight",
    ],
)
def test_one_tensor_that_was_trained(tiny_folder: Path, copied: Path, name: str) -> None:
    tensors = load_file(copied / SINGLE)
    tensors[name] = (tensors[name].float() * 1.01).bfloat16()
    save_file(tensors, copied / SINGLE)
    assert fingerprint(copied) != fingerprint(tiny_folder)


def test_one_trained_expert_of_a_stack(tiny_folder: Path, copied: Path) -> None:
    tensors = load_file(copied / SINGLE)
    tensors["language_model.model.layers.1.mlp.experts.fc1.weight"][63] *= 1.5
    save_file(tensors, copied / SINGLE)
    assert fingerprint(copied) != fingerprint(tiny_folder)


def test_another_name_or_shape(tiny_folder: Path, copied: Path) -> None:
    tensors = load_file(copied / SINGLE)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name].view(32, -1)}, copied / SINGLE)
    reshaped = fingerprint(copied)
    del tensors[name]
    save_file(tensors, copied / SINGLE)
    assert len({reshaped, fingerprint(copied), fingerprint(tiny_folder)}) == 3


def test_packed_weights_are_known_by_what_they_were_packed_from(tiny_folder: Path, tmp_path: Path) -> None:
    packed = quantize(str(tiny_folder), tmp_path / "nf4")
    assert identity_of(packed) == BaseIdentity(fingerprint(tiny_folder), {SINGLE: hash_file(tiny_folder / SINGLE)})
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    del config["quantization_config"]["source"]["values"]  # as checkpoints were before
    (tmp_path / "nf4" / "config.json").write_text(json.dumps(config))
    found = identity_of(open_checkpoint(str(tmp_path / "nf4")))
    assert found == BaseIdentity(None, {SINGLE: hash_file(tiny_folder / SINGLE)})
    del config["quantization_config"]["source"]
    (tmp_path / "nf4" / "config.json").write_text(json.dumps(config))
    assert identity_of(open_checkpoint(str(tmp_path / "nf4"))) == BaseIdentity(None)


def test_it_is_written_and_read(tmp_path: Path) -> None:
    assert read_identity(tmp_path) == BaseIdentity(None)
    for identity in (BaseIdentity("abc"), BaseIdentity(None, {"a": "b"}), BaseIdentity("abc", {"a": "b"})):
        write_identity(tmp_path, identity)
        assert read_identity(tmp_path) == identity


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"values": "a", "sha256": 3}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / BASE_FILE).write_text(text)
    with pytest.raises(UserError, match=BASE_FILE):
        read_identity(tmp_path)


def test_a_shard_that_ends_early(copied: Path) -> None:
    checkpoint = open_checkpoint(str(copied))
    data = (copied / SINGLE).read_bytes()
    (copied / SINGLE).write_bytes(data[:-10])
    with pytest.raises(UserError, match="can't be read"):
        fingerprint_values(checkpoint)


def test_only_a_sample_is_read(copied: Path) -> None:
    """It says so itself: what is between the sampled rows of a linear is not looked at."""
    before = fingerprint(copied)
    tensors = load_file(copied / SINGLE)
    tensors["language_model.lm_head.weight"][1] += 1
    assert torch.isfinite(tensors["language_model.lm_head.weight"]).all()
    save_file(tensors, copied / SINGLE)
    assert fingerprint(copied) == before
