"""Copy a safetensors file tensor by tensor, changing some: the header stays, byte for byte.

safetensors writes whole files from tensors in memory; a shard of the real Aria is 5 GB. The format is eight
bytes of header length, a JSON header with data offsets, and the data
(https://huggingface.co/docs/safetensors, "Format"). Knows nothing of what the tensors are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from aria_finetune.errors import UserError

LENGTH_BYTES = 8
CHUNK_BYTES = 16 * 2**20


def copy_shard(
    source: Path, target: Path, changed: Callable[[str], Callable[[torch.Tensor], torch.Tensor] | None]
) -> None:
    """Write `target` as a copy of `source` in which some tensors are replaced.

    Args:
        source: a safetensors file.
        target: written and synced; must not exist.
        changed: gives for a tensor's name the function that computes its new value (same shape, same dtype), or
            None where it stays. Only changed tensors are decoded, one at a time.

    Raises:
        UserError: the source is not a whole safetensors file. Nothing is written then.
    """
    with _opened(source) as tensors, source.open("rb") as reader, target.open("xb") as writer:
        length = int.from_bytes(reader.read(LENGTH_BYTES), "little")
        header = reader.read(length)
        writer.write(length.to_bytes(LENGTH_BYTES, "little") + header)
        for name, entry in _in_file_order(json.loads(header)):
            start, end = entry["data_offsets"]
            compute = changed(name)
            if compute is None:
                reader.seek(LENGTH_BYTES + length + start)
                _copy(reader, writer, end - start, source)
            else:
                writer.write(_bytes(compute(tensors.get_tensor(name)), end - start, name))
        writer.flush()
        os.fsync(writer.fileno())


def _opened(source: Path) -> Any:
    try:
        return safe_open(source, "pt")
    except SafetensorError as error:
        raise UserError(f"the shard can't be read ({error})", where=str(source), fix="download it again") from error


def _in_file_order(header: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    return sorted(entries, key=lambda item: item[1]["data_offsets"])


def _copy(reader: BinaryIO, writer: BinaryIO, size: int, source: Path) -> None:
    while size:
        chunk = reader.read(min(size, CHUNK_BYTES))
        if not chunk:
            raise UserError("the shard ends before its data do", where=str(source), fix="download it again")
        writer.write(chunk)
        size -= len(chunk)


def _bytes(tensor: torch.Tensor, size: int, name: str) -> memoryview:
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    if data.nbytes != size:
        raise ValueError(f"{name}: {data.nbytes} bytes where {size} stood")
    return data
