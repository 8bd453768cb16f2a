"""The embedding in host memory looks up the same rows and is moved by nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from aria_finetune.model.holding import Holding
from aria_finetune.model.host_embedding import HostEmbedding, hold_embedding_on_host
from aria_finetune.model.loading import load_model
from aria_finetune.quantization import quantize

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_those_of_the_table_and_are_where_the_ids_are(device: str) -> None:
    dense = nn.Embedding(50, 8, padding_idx=2)
    ids = torch.tensor([[3, 49, 2], [0, 3, 3]])
    rows = HostEmbedding(dense.weight.to(device), dense.padding_idx)(ids.to(device))
    assert rows.device.type == device
    assert torch.equal(rows.cpu(), dense(ids))
    assert rows.is_leaf
    assert not rows.requires_grad, "so that a hook can ask it to"


def test_no_move_and_no_cast_of_a_model_reaches_it() -> None:
    """Meta stands for a device: what a move reaches loses its values."""
    model = nn.Sequential(HostEmbedding(torch.ones(5, 4), None), nn.Linear(4, 4))
    model.to(torch.bfloat16)
    model.to("meta")
    assert model[1].weight.device.type == "meta"
    assert model[1].weight.dtype == torch.bfloat16
    table = model[0].weight
    assert (table.device.type, table.dtype, table.requires_grad) == ("cpu", torch.float32, False)
    assert torch.equal(model[0](torch.tensor([0])), torch.ones(1, 4))


@pytest.mark.parametrize("quantised", [False, True])
def test_a_loaded_model(tiny_folder: Path, tmp_path: Path, ids: torch.Tensor, quantised: bool) -> None:
    if quantised:
        quantize(str(tiny_folder), tmp_path / "nf4")
    path = str(tmp_path / "nf4" if quantised else tiny_folder)
    on_host, on_device = load_model(path, holding=Holding(embedding="host")), load_model(path)
    assert isinstance(on_host.model.get_input_embeddings(), HostEmbedding)
    with torch.no_grad():
        assert torch.equal(on_host.model(input_ids=ids).logits, on_device.model(input_ids=ids).logits)
    homes = {part.name: part.home for part in on_host.components}
    assert [name for name, home in homes.items() if home == "host"] == ["embedding"]
    assert [(part.name, part.bytes) for part in on_host.components] == [
        (part.name, part.bytes) for part in on_device.components
    ]


def test_the_model_says_of_its_device_what_the_rest_of_it_does(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder), experts="fp32", dtype=torch.float32).model
    hold_embedding_on_host(model)
    model.to("meta")
    assert model.device.type == "meta"
    assert model.get_input_embeddings().weight.device.type == "cpu"
