"""Copy a safetensors file tensor by tensor, changing some: the header stays, byte for byte.

safetensors writes whole files from tensors in memory; a shard of the real Aria is 5 GB. The format is eight
bytes of header length, a JSON header with data offsets, and the data
(https://huggingface.co/docs/safetensors, "Format"). Knows nothing of what the tensors are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from aria_finetune.errors import UserError

LENGTH_BYTES = 8
CHUNK_BYTES = 16 * 2**20
METADATA = "__metadata__"


Change = Callable[[torch.Tensor], Iterable[torch.Tensor]]
"""Gives the new value of a tensor, of the same size and dtype, in pieces one behind the other."""


def copy_shard(
    source: Path,
    target: Path,
    changed: Callable[[str], Change | None],
    renamed: Callable[[str], str] = lambda name: name,
) -> str:
    """Write `target` as a copy of `source` in which some tensors are replaced.

    Args:
        source: a safetensors file.
        target: written and synced; must not exist.
        changed: gives for a tensor's name the function that computes its new value, or None where it stays. Only changed
            tensors are decoded, one at a time.
        renamed: gives the name in `target` of a tensor of `source`. Where all stay, the header does, byte for byte.

    Returns:
        The SHA-256 of what was written.

    Raises:
        UserError: the source is not a whole safetensors file. Nothing is written then.
    """
    with _opened(source) as tensors, source.open("rb") as reader, target.open("xb") as file:
        writer = _HashingWriter(file)
        length = int.from_bytes(reader.read(LENGTH_BYTES), "little")
        header = reader.read(length)
        writer.write(_header(header, renamed))
        for name, entry in _in_file_order(json.loads(header)):
            start, end = entry["data_offsets"]
            compute = changed(name)
            if compute is None:
                reader.seek(LENGTH_BYTES + length + start)
                _copy(reader, writer, end - start, source)
            else:
                _write(compute(tensors.get_tensor(name)), writer, end - start, name)
        file.flush()
        os.fsync(file.fileno())
    return writer.hash.hexdigest()


class _HashingWriter:
    """Writes to a file and keeps the hash of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.hash.update(data)


def _header(header: bytes, renamed: Callable[[str], str]) -> bytes:
    """Length and header, with other names if there are any; its end filled up with spaces to a multiple of eight."""
    entries = json.loads(header)
    names = {name: name if name == METADATA else renamed(name) for name in entries}
    if any(old != new for old, new in names.items()):
        header = json.dumps({names[name]: entry for name, entry in entries.items()}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % LENGTH_BYTES)
    return len(header).to_bytes(LENGTH_BYTES, "little") + header


def _opened(source: Path) -> Any:
    try:
        return safe_open(source, "pt")
    except SafetensorError as error:
        raise UserError(f"the shard can't be read ({error})", where=str(source), fix="download it again") from error


def _in_file_order(header: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    entries = [(name, entry) for name, entry in header.items() if name != METADATA]
    return sorted(entries, key=lambda item: item[1]["data_offsets"])


def _copy(reader: BinaryIO, writer: _HashingWriter, size: int, source: Path) -> None:
    while size:
        chunk = reader.read(min(size, CHUNK_BYTES))
        if not chunk:
            raise UserError("the shard ends before its data do", where=str(source), fix="download it again")
        writer.write(chunk)
        size -= len(chunk)


def _write(pieces: Iterable[torch.Tensor], writer: _HashingWriter, size: int, name: str) -> None:
    written = 0
    for piece in pieces:
        data = piece.contiguous().view(-1).view(torch.uint8).numpy().data
        written += data.nbytes
        if written > size:
            break
        writer.write(data)
    if written != size:
        raise ValueError(f"{name}: {written} bytes where {size} stood")
