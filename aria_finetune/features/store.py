"""A folder of image features: one safetensors file for each picture, by its key.

A file is written aside, synced and renamed, and carries its key and the hash of its tensor, so that what is read is whole
and is what was asked for, or is refused. Knows files and locks. Knows nothing of what keys are made of.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load, save

from aria_finetune.checkpoint.space import require_space, shown_bytes
from aria_finetune.errors import UserError
from aria_finetune.staging import sync

TENSOR = "features"
SUFFIX = ".safetensors"
PART = ".part"
LOCK_FILE = ".lock"
IN_USE, FILLING = 0, 1
"""Bytes of the lock file: the first is shared by all runs that use the folder, the second belongs to the one that fills."""
HEADER_BYTES = 512
"""At most, of a file; about 350."""
GIB = 2**30
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}
"""Names that safetensors has for what features may be."""
_FILE = re.compile(r"[0-9a-f]{64}" + re.escape(SUFFIX))
_FOLDER = re.compile(r"[0-9a-f]{2}")
ROOM_REMEDY = "raise data.cache_limit_gib, name another folder in data.cache_image_features, or set it to false"
DISK_REMEDY = "free some space, name a folder on another disk in data.cache_image_features, or set it to false"


class BrokenFeatures(Exception):
    """What is stored can't be read, or is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Form:
    """The features of a picture: (tiles, tokens, hidden), and their dtype."""

    shape: tuple[int, int, int]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its bytes, and when a run last began to use it (in nanoseconds)."""

    bytes: int
    used: int


class FeatureStore:
    """The features in a folder. Reading needs nothing else; to write or remove them, open it with `use_store`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, key: str) -> Path:
        """Where the features with a key are, or would be."""
        return self.folder / key[:2] / (key + SUFFIX)

    def holds(self, key: str, form: Form) -> bool:
        """Whether a whole file is there, by its size and its header; its tensor is not read."""
        try:
            with self.path_of(key).open("rb") as file:
                header, start = _header(file.read(HEADER_BYTES))
                size = os.fstat(file.fileno()).st_size
        except (OSError, BrokenFeatures):
            return False
        written = header.get("__metadata__")
        digest = written.get("sha256") if isinstance(written, dict) else None
        return size == start + form.bytes and header == _expected(key, form, digest)

    def is_sound(self, key: str, form: Form) -> bool:
        """Whether what is there is what was written, by the hash of its tensor."""
        try:
            self.read(key, form)
        except BrokenFeatures:
            return False
        return True

    def read(self, key: str, form: Form) -> torch.Tensor:
        """The features with a key.

        Raises:
            BrokenFeatures: they are not there, or not as they were written.
        """
        try:
            data = self.path_of(key).read_bytes()
        except OSError as error:
            raise BrokenFeatures(f"can't be read: {error.strerror}") from error
        header, start = _header(data)
        content = memoryview(data)[start:]
        if len(content) != form.bytes:
            raise BrokenFeatures(f"has {len(content)} bytes of features instead of {form.bytes}")
        if header != _expected(key, form, hashlib.sha256(content).hexdigest()):
            raise BrokenFeatures("is damaged")
        features: torch.Tensor = load(data)[TENSOR]
        return features

    def write(self, key: str, features: torch.Tensor) -> None:
        """Store features (tiles, tokens, hidden), whole or not at all."""
        features = features.contiguous().cpu()
        digest = hashlib.sha256(features.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
        data = save({TENSOR: features}, metadata={"key": key, "sha256": digest})
        path = self.path_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{key}-{secrets.token_hex(4)}{PART}")  # process ids are equal on two machines
        try:
            part.write_bytes(data)
            sync(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        """Remove features, if they are there."""
        self.path_of(key).unlink(missing_ok=True)

    def mark_used(self, keys: Iterable[str]) -> None:
        """Say that a run begins to use these."""
        for key in keys:
            with suppress(OSError):
                os.utime(self.path_of(key))

    def entries(self) -> dict[str, Entry]:
        """All features by their keys."""
        found = {}
        for file in self._files():
            if _FILE.fullmatch(file.name):
                with suppress(OSError):
                    status = file.stat()
                    found[file.stem] = Entry(status.st_size, status.st_mtime_ns)
        return found

    def _remove_parts(self) -> None:
        """Remove what processes left that were killed in mid-write; nobody else may be at work."""
        for file in self._files():
            if file.name.endswith(PART):
                file.unlink(missing_ok=True)

    def _files(self) -> Iterator[Path]:
        for folder in self.folder.iterdir():
            if _FOLDER.fullmatch(folder.name) and folder.is_dir():
                yield from folder.iterdir()


class UsedStore(FeatureStore):
    """A store that this process uses: until it is closed no other process removes anything from it."""

    def __init__(self, folder: Path, lock: IO[bytes]) -> None:
        super().__init__(folder)
        self._lock = lock

    @contextmanager
    def filling(self, say: Callable[[str], None]) -> Iterator[None]:
        """Be the only one that fills the folder, which another process may be doing: then wait for it."""
        if not _locked(self._lock, FILLING, fcntl.LOCK_EX | fcntl.LOCK_NB):
            say(f"waiting for another run that computes image features into {self.folder}/")
            _locked(self._lock, FILLING, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, FILLING)

    def make_room(self, needed: Mapping[str, int], limit_bytes: int) -> int:
        """See to it that what a run needs has its place, by removing what was not used for the longest time.

        Args:
            needed: bytes of all features of the run by their keys, those that are there included. None of them goes.
            limit_bytes: of all features in the folder.

        Returns:
            How many bytes are to be written.

        Raises:
            UserError: the limit or the disk does not allow them; what is needed and what is free are named.
        """
        total = sum(needed.values())
        if total > limit_bytes:
            raise UserError(
                f"the image features of this run need {shown_bytes(total)}, and data.cache_limit_gib allows "
                f"{shown_bytes(limit_bytes)}",
                where=str(self.folder),
                fix=ROOM_REMEDY,
            )
        with self._alone() as alone:
            if alone:
                self._remove_parts()
            entries = self.entries()
            missing = sum(size for key, size in needed.items() if key not in entries)
            over = sum(entry.bytes for entry in entries.values()) + missing - limit_bytes
            if over > 0 and not alone:
                raise UserError(
                    f"{shown_bytes(missing)} of image features are to be written, {shown_bytes(over)} more than "
                    "data.cache_limit_gib allows beside what is there; as another run uses the folder, nothing is removed",
                    where=str(self.folder),
                    fix=ROOM_REMEDY + ", or wait for that run",
                )
            for key in sorted(entries.keys() - needed.keys(), key=lambda key: entries[key].used):
                if over <= 0:
                    break
                self.remove(key)
                over -= entries[key].bytes
        require_space(self.folder, missing, "what is still to be written of the image features", DISK_REMEDY)
        return missing

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep other processes from beginning to use the folder; false where one does, or the file system can't tell."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, IN_USE)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            _locked(self._lock, IN_USE, fcntl.LOCK_SH)


@contextmanager
def use_store(folder: Path) -> Iterator[UsedStore]:
    """Open a folder of features, made where it is not there yet.

    Raises:
        UserError: it can't be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("r+b" if (folder / LOCK_FILE).exists() else "w+b")
    except OSError as error:
        raise UserError(
            f"the folder for image features can't be written to: {error.strerror}",
            where=str(folder),
            fix="name another one in data.cache_image_features",
        ) from error
    with lock:
        _locked(lock, IN_USE, fcntl.LOCK_SH)
        yield UsedStore(folder, lock)


def _locked(file: IO[bytes], place: int, how: int) -> bool:
    """Lock a byte; false where another process has it. Some network file systems have no locks: then go on without.

    Record locks, because a forked worker that outlives its killed parent by seconds would go on holding any other.
    """
    try:
        fcntl.lockf(file, how, 1, place)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length]) if length <= HEADER_BYTES else None
    except (struct.error, ValueError) as error:
        raise BrokenFeatures("has a damaged header") from error
    if not isinstance(header, dict):
        raise BrokenFeatures("has a damaged header")
    return header, 8 + length


def _expected(key: str, form: Form, digest: object) -> dict[str, Any]:
    return {
        "__metadata__": {"key": key, "sha256": digest},
        TENSOR: {"dtype": DTYPES[form.dtype], "shape": list(form.shape), "data_offsets": [0, form.bytes]},
    }
