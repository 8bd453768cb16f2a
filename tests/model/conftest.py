"""Damaged copies of the tiny checkpoint, and a text to read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that may be written to."""
    folder = tmp_path / "aria"
    shutil.copytree(tiny_folder, folder)
    return folder


@pytest.fixture
def edited(copied: Path) -> Callable[[Callable[[Weights], object]], Path]:
    """A function that changes the weights of a copy of the tiny checkpoint and gives its folder."""

    def edit(change: Callable[[Weights], object]) -> Path:
        weights = load_file(copied / "model.safetensors")
        change(weights)
        save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
        return copied

    return edit


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Token ids (2, 40) without pictures."""
    return torch.randint(10, 700, (2, 40), generator=torch.Generator().manual_seed(0))
