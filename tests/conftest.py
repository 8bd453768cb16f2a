"""What tests of several rooms share: the tiny Aria that ships with the package, and a copy of it in fp32.

No test reaches the network: the hub's client is told so before anything imports it.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from transformers import AriaProcessor

from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.loading import load_processor
from aria_finetune.tiny import CHECKPOINT


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="Inject every fault as often as `make soak` does.")


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether faults are injected in full numbers instead of a few."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.fixture(scope="session")
def tiny_aria_processor() -> AriaProcessor:
    return load_processor(open_checkpoint("tiny"))


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The shipped checkpoint, bf16. Not to be written to."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def fp32_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint with every weight stored as fp32 of the same value. Not to be written to."""
    folder = tmp_path_factory.mktemp("fp32") / "aria"
    shutil.copytree(CHECKPOINT, folder)
    save_file(upcast((folder / "model.safetensors").read_bytes()), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config).replace("bfloat16", "float32"))
    return folder


def upcast(file: bytes) -> dict[str, np.ndarray]:
    """Tensors of a bf16 safetensors file as fp32: 16 zero bits more behind every value."""
    start = 8 + int.from_bytes(file[:8], "little")
    tensors = {}
    for name, entry in json.loads(file[8:start]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", name
            begin, end = entry["data_offsets"]
            halves = np.frombuffer(file[start + begin : start + end], dtype="<u2").astype(np.uint32)
            tensors[name] = (halves << 16).view(np.float32).reshape(entry["shape"])
    return tensors


@pytest.fixture(scope="session")
def pretend_trained() -> Callable[..., PeftModel]:
    """A function that fills the B matrices of an adapter, which start at zero, as training would."""

    def fill(model: PeftModel, *, deviation: float = 0.01, seed: int = 3) -> PeftModel:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=deviation, generator=generator)
        return model

    return fill
