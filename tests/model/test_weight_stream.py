"""Weights come whole, in the order of the disk, a few pieces at a time, and a reader that fails or is left is ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aria_finetune.errors import UserError
from aria_finetune.model import weight_stream
from aria_finetune.model.hub_layout import HubCheckpoint, open_checkpoint
from aria_finetune.model.weight_stream import AHEAD, Piece, read_ahead

Sharded = Callable[..., Path]


def heights(checkpoint: HubCheckpoint, height: int) -> dict[str, int]:
    return dict.fromkeys(checkpoint.stored, height)


def whole(pieces: list[Piece]) -> dict[str, torch.Tensor]:
    """Tensors put together, each from pieces that follow one another."""
    found: dict[str, list[torch.Tensor]] = {}
    for piece in pieces:
        rows = found.setdefault(piece.name, [])
        assert piece.start == sum(map(len, rows))
        rows.append(piece.rows)
    return {name: torch.cat(rows) for name, rows in found.items()}


@pytest.mark.parametrize("height", [1, 7, 64, 10**9])
def test_pieces_make_up_the_tensors(tiny_folder: Path, height: int) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    expected = {name: tensor for shard in checkpoint.shards for name, tensor in load_file(tiny_folder / shard).items()}
    pieces = list(read_ahead(checkpoint, heights(checkpoint, height)))
    assert max(len(piece.rows) for piece in pieces) <= height
    found = whole(pieces)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_each_piece_has_memory_of_its_own(tiny_folder: Path) -> None:
    """A view would hold on to the file, and read it when it is looked at."""
    checkpoint = open_checkpoint(str(tiny_folder))
    for piece in read_ahead(checkpoint, heights(checkpoint, 3)):
        assert piece.rows.untyped_storage().nbytes() == piece.rows.nbytes


def test_only_what_is_asked_for(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    names = sorted(checkpoint.stored)[::5]
    assert {piece.name for piece in read_ahead(checkpoint, dict.fromkeys(names, 100))} == set(names)
    assert list(read_ahead(checkpoint, {})) == []


def test_the_order_is_that_of_the_disk(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    names = list(dict.fromkeys(piece.name for piece in read_ahead(checkpoint, heights(checkpoint, 10**9))))
    assert names == list(checkpoint.stored)


def test_a_few_pieces_are_in_memory(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def counted(name: str, start: int, rows: torch.Tensor) -> Piece:
        nonlocal read
        read += 1
        return Piece(name, start, rows)

    monkeypatch.setattr(weight_stream, "Piece", counted)
    checkpoint = open_checkpoint(str(tiny_folder))
    taken = 0
    for _ in read_ahead(checkpoint, heights(checkpoint, 10**9)):
        taken += 1
        assert read <= taken + AHEAD + 1
    assert taken == read == len(checkpoint.stored)


def test_the_reader_ends_with_who_waits_for_it(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    before = threading.active_count()
    pieces = read_ahead(checkpoint, heights(checkpoint, 1))
    next(pieces)
    assert threading.active_count() == before + 1
    pieces.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_shard_that_was_cut_since(copied: Path) -> None:
    checkpoint = open_checkpoint(str(copied))
    shard = copied / checkpoint.shards[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    before = threading.active_count()
    with pytest.raises(UserError, match="the shard can't be read") as caught:
        list(read_ahead(checkpoint, heights(checkpoint, 1)))
    assert caught.value.where == str(shard)
    assert threading.active_count() == before
