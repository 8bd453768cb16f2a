"""Fingerprints: equal for equal things, different for the smallest difference."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from aria_finetune.provenance import fingerprint, fingerprint_objects, fingerprint_weights, versions


@dataclass(frozen=True)
class Row:
    text: str
    tokens: int


def test_objects_differ_by_value_order_and_number() -> None:
    rows = [Row("a", 1), Row("b", 2)]
    same = fingerprint_objects(rows)
    assert fingerprint_objects([Row("a", 1), Row("b", 2)]) == same
    for other in (
        [Row("a", 1)],
        [*rows, Row("b", 2)],
        rows[::-1],
        [Row("a", 1), Row("b ", 2)],
        [Row("a", 1), Row("b", 3)],
    ):
        assert fingerprint_objects(other) != same
    assert fingerprint_objects([Row("\ud800", 1)]) != same


def test_weights_differ_by_name_shape_and_value(tmp_path: Path) -> None:
    def weights(folder: str, name: str, tensor: torch.Tensor) -> str:
        (tmp_path / folder).mkdir()
        save_file({name: tensor}, tmp_path / folder / "model.safetensors")
        return fingerprint_weights(tmp_path / folder, ["model.safetensors"])

    tensor = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1))
    same = weights("same", "a", tensor)
    assert weights("again", "a", tensor) == same
    others = [
        weights("name", "b", tensor),
        weights("shape", "a", tensor.reshape(500, 2000)),
        weights("tuned", "a", tensor * 1.0001),
        weights("dtype", "a", tensor.bfloat16()),
    ]
    assert len({same, *others}) == 5


def test_a_files_fingerprint_is_its_sha256_and_a_data_sets_that_of_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    wanted = hashlib.sha256(b"{}").hexdigest()
    assert fingerprint(tmp_path) == fingerprint(tmp_path / "manifest.json") == wanted
    assert fingerprint(tmp_path / "absent") == "unknown"


def test_versions_name_the_packages_that_decide() -> None:
    assert versions()["torch"] == torch.__version__
    assert {"python", "aria-finetune", "transformers", "trl", "peft", "bitsandbytes"} <= set(versions())
