"""Quantise a checkpoint: every weight of the decoder packed once, so that later runs load it in seconds.

A file for each decoder layer, written aside and renamed when it is whole, so that what was interrupted goes on where it
stopped, and ends in the same bytes. Knows checkpoints on disk. Knows nothing of recipes or training.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from aria_finetune import __version__
from aria_finetune.checkpoint.space import explain_full_disk, require_space
from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import fingerprint_values
from aria_finetune.model.filling import Kind, dense_height, places
from aria_finetune.model.hub_layout import INDEX, HubCheckpoint, StoredTensor, disk_name, open_checkpoint
from aria_finetune.model.loading import check_complete, empty_model, layer_of
from aria_finetune.model.nf4 import BLOCK, NESTED_BLOCK, Packer, prepare_for_nf4, quantize_linear
from aria_finetune.model.nf4_checkpoint import (
    Source,
    is_nf4,
    packed_shapes,
    quantization_config,
    tensors_of,
)
from aria_finetune.model.weight_stream import read_ahead
from aria_finetune.provenance import hash_file
from aria_finetune.staging import replace_text
from aria_finetune.workplace import BEGUN, workplace

DTYPE = torch.bfloat16
"""In which weights are packed, as they are while they load for training in bf16."""
COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt"}
MOST_DENSE_BYTES = 1 << 30
"""Of a file of what stays in 16 bit."""
BITS = {"BF16": 16, "F16": 16, "F32": 32, "F64": 64}
_SHA256 = re.compile(r"[0-9a-f]{64}")
DISK_REMEDY = "free some space, or name an output on another disk"

Watch = Callable[[int, int], None]
"""Takes how many files are done, and of how many."""


@dataclass(frozen=True)
class Part:
    """A file of the output: its name, and the weights in it by their names on disk, with what each is to be."""

    file: str
    weights: Mapping[str, Kind]


def quantize(
    path: str,
    output: Path,
    *,
    revision: str | None = None,
    name: str | None = None,
    device: str = "cpu",
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> HubCheckpoint:
    """Write the NF4 checkpoint of some weights.

    Args:
        path: a folder in the hub layout, a hub id, or `tiny`.
        output: made by this call. What was begun and not finished lies beside it, and is gone on with.
        revision: branch, tag or commit of a hub id.
        name: what the checkpoint is to say it was made of; by default what `path` names.
        device: `cpu` or `cuda`, where weights are packed; the bytes are the same.
        watch: is told how many files are done.
        say: is told of files that were found damaged and are made again.

    Raises:
        UserError: the weights are not a complete Aria, are quantised already or damaged, the disk is too small, or there
            is something at the output.
    """
    source = open_checkpoint(path, revision)
    if is_nf4(source):
        raise UserError("the checkpoint is NF4 already", where=str(source.folder), fix="name the original weights")
    parts = plan_parts(source)
    with workplace(output, "quantizing", _identity(source), say) as place:
        todo = [part for part in parts if part.file not in place.files]
        bytes_to_write = sum(part_bytes(part, source) for part in todo)
        require_space(output.parent, bytes_to_write, "what is still to be written of the NF4 checkpoint", DISK_REMEDY)
        with (
            ThreadPoolExecutor(1) as pool,
            explain_full_disk(output.parent, bytes_to_write, "the NF4 checkpoint", DISK_REMEDY),
        ):
            hashes = {shard: pool.submit(hash_file, source.folder / shard) for shard in source.shards}
            try:
                for part in todo:
                    if watch is not None:
                        watch(len(place.files), len(parts))
                    place.finished(part.file, _write_part(part, source, place.path, device))
                hashed = _checked(hashes, source)
                made_of = Source(name or _name_of(path), _commit(source), hashed, fingerprint_values(source))
            finally:
                pool.shutdown(cancel_futures=True)
            _finish(place.path, source, parts, place.files, made_of)
            if watch is not None:
                watch(len(parts), len(parts))
        place.release(output)
    return open_checkpoint(str(output))


def plan_parts(source: HubCheckpoint) -> list[Part]:
    """The files of the output: what stays dense in some of at most a gibibyte or one tensor, then each decoder layer.

    Raises:
        UserError: the weights are not a complete Aria.
    """
    model = empty_model(source, DTYPE, "grouped_mm")
    prepare_for_nf4(model, DTYPE)
    check_complete(model, source)
    kinds = {disk_name(name): kind for name, _, _, kind in places(model)}
    groups: list[dict[str, Kind]] = [{}]
    layers: dict[int, dict[str, Kind]] = {}
    held = 0
    for name in sorted(source.stored.keys() & kinds.keys()):
        layer = layer_of(name)
        if layer is not None:
            layers.setdefault(layer, {})[name] = kinds[name]
            continue
        size = dense_bytes(source.stored[name])
        if groups[-1] and held + size > MOST_DENSE_BYTES:
            groups.append({})
            held = 0
        groups[-1][name] = kinds[name]
        held += size
    groups += [layers[layer] for layer in sorted(layers)]
    return [
        Part(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group) for number, group in enumerate(groups, 1)
    ]


def part_bytes(part: Part, source: HubCheckpoint) -> int:
    """About how large a file will be."""
    return sum(
        dense_bytes(source.stored[name]) if kind == "dense" else packed_bytes(source.stored[name])
        for name, kind in part.weights.items()
    )


def dense_bytes(tensor: StoredTensor) -> int:
    """Bytes of a tensor as it is stored."""
    return torch.Size(tensor.shape).numel() * BITS.get(tensor.dtype, 32) // 8


def packed_bytes(tensor: StoredTensor) -> int:
    """Bytes of a tensor in NF4 with double quantisation."""
    weights = torch.Size(tensor.shape).numel()
    return weights // 2 + weights // BLOCK + 4 * (weights // BLOCK // NESTED_BLOCK + 1) + 4 * (16 + 256) + 256


def _identity(source: HubCheckpoint) -> dict[str, Any]:
    """What must be the same for a begun output to be gone on with."""
    marks = {shard: (source.folder / shard).stat() for shard in source.shards}
    return {
        "source": {shard: [mark.st_size, mark.st_mtime_ns] for shard, mark in marks.items()},
        "config": source.config,
        "version": __version__,
    }


def _write_part(part: Part, source: HubCheckpoint, folder: Path, device: str) -> str:
    """Write a file, without its name yet, and give its SHA-256."""
    tensors: dict[str, torch.Tensor] = {}
    packers: dict[str, Packer] = {}
    heights = {name: _height(source, name, kind) for name, kind in part.weights.items()}
    for piece in read_ahead(source, heights):
        name, shape = piece.name, torch.Size(source.stored[piece.name].shape)
        match part.weights[name]:
            case "linear":
                tensors |= tensors_of(name, *quantize_linear(piece.rows.to(device, DTYPE)))
            case "experts":
                packer = packers.setdefault(name, Packer(shape, DTYPE, device))
                packer.add(piece.start, piece.rows)
                if piece.start + 1 == shape[0]:
                    tensors |= tensors_of(name, *packers.pop(name).finish())
            case "dense":
                whole = tensors.setdefault(name, torch.empty(shape, dtype=piece.rows.dtype))
                whole[piece.start : piece.start + len(piece.rows)] = piece.rows
    unnamed = folder / f"{part.file}.part"
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, unnamed, {"format": "pt"})
    return hash_file(unnamed)


def _height(source: HubCheckpoint, name: str, kind: Kind) -> int:
    shape = source.stored[name].shape
    if kind == "dense":
        return dense_height(torch.empty(shape, dtype=DTYPE, device="meta"))
    return 1 if kind == "experts" else shape[0]


def _checked(hashes: Mapping[str, Future[str]], source: HubCheckpoint) -> dict[str, str]:
    """The hashes of the source's files, which the hub's cache has for names."""
    found = {shard: future.result() for shard, future in hashes.items()}
    for shard, sha256 in found.items():
        named = (source.folder / shard).resolve().name
        if _SHA256.fullmatch(named) and named != sha256:
            raise UserError(
                f"{shard} is damaged: its SHA-256 is {sha256}, not {named}",
                where=str(source.folder),
                fix="download it again",
            )
    return found


def _finish(
    folder: Path, source: HubCheckpoint, parts: Sequence[Part], hashes: Mapping[str, str], made_of: Source
) -> None:
    """Write what belongs to a checkpoint beside its weights."""
    for path in sorted(source.folder.iterdir()):
        unwanted = path.name == BEGUN or path.name.endswith(".safetensors.index.json")
        if path.is_file() and path.suffix in COPIED_SUFFIXES and not unwanted:
            shutil.copyfile(path, folder / path.name)
    config = source.config | {"quantization_config": quantization_config(made_of)}
    replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    index = {
        "metadata": {
            "total_size": sum((folder / part.file).stat().st_size for part in parts),
            "sha256": {part.file: hashes[part.file] for part in parts},
        },
        "weight_map": {
            name: part.file
            for part in parts
            for weight, kind in part.weights.items()
            for name in _names(weight, kind, source.stored[weight])
        },
    }
    replace_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _names(weight: str, kind: Kind, stored: StoredTensor) -> list[str]:
    return [weight] if kind == "dense" else list(packed_shapes(weight, torch.Size(stored.shape)))


def _name_of(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.is_dir() and path != "tiny" else path


def _commit(source: HubCheckpoint) -> str | None:
    """The commit of a snapshot in the hub's cache."""
    return source.folder.name if source.folder.parent.name == "snapshots" else None
