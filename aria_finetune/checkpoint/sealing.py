"""Seals on folders: a manifest of sizes and hashes that shows every missing, cut or changed file.

A sealed folder is written aside, hashed, synced and renamed, so that neither a kill nor a power cut leaves half of
one under its final name. Knows nothing of what is sealed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aria_finetune.provenance import hash_file
from aria_finetune.staging import staged_folder, sync, sync_tree

MANIFEST_FILE = "manifest.json"
FORMAT = 1


class BrokenSeal(Exception):
    """A folder is not what was sealed; the message says which file and how."""


@contextmanager
def sealed_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, sealed as `path` when the block ends well; else nothing of it is left.

    Raises:
        UserError: something is at `path` already.
        OSError: the disk is full or failed; nothing is at `path` then.
    """
    with staged_folder(path) as folder:
        yield folder
        _write_manifest(folder)
        sync_tree(folder)
    sync(path.parent)


def check_seal(folder: Path) -> None:
    """Compare every file of a sealed folder with its manifest. Files that the manifest does not name are not opened.

    Raises:
        BrokenSeal: the manifest or a file is absent, empty, cut or changed.
    """
    for name, entry in _files_of_size(folder).items():
        try:
            changed = hash_file(folder / name) != entry["sha256"]
        except OSError as error:
            raise BrokenSeal(f"{name} can't be read: {error.strerror}") from error
        if changed:
            raise BrokenSeal(f"{name} was changed: its SHA-256 differs")


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of each file by its path in the folder.

    Raises:
        BrokenSeal: there is no manifest, or it is not to the byte what was written.
    """
    try:
        written = (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise BrokenSeal(f"{MANIFEST_FILE} can't be read: {error.strerror}") from error
    try:
        manifest = json.loads(written)
        # A flipped bit may leave valid JSON; it can't leave these very bytes.
        if written != _manifest_bytes(manifest["files"]):
            raise BrokenSeal(f"{MANIFEST_FILE} was changed")
        files: dict[str, dict[str, Any]] = manifest["files"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenSeal(f"{MANIFEST_FILE} is cut or damaged") from error
    return files


def is_sealed(folder: Path) -> bool:
    """Whether the folder has a sound manifest and files of the right sizes; their contents are not read."""
    try:
        _files_of_size(folder)
    except BrokenSeal:
        return False
    return True


def sealed_bytes(folder: Path) -> int:
    """Bytes of all files of a sealed folder, by its manifest."""
    return sum(entry["bytes"] for entry in read_manifest(folder).values())


def _write_manifest(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST_FILE).write_bytes(_manifest_bytes(files))


def _manifest_bytes(files: dict[str, dict[str, Any]]) -> bytes:
    listed = json.dumps(files, indent=2, sort_keys=True)
    manifest = {"format": FORMAT, "files": files, "sha256": hashlib.sha256(listed.encode()).hexdigest()}
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()


def _files_of_size(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files, each of which is there and has its size."""
    files = read_manifest(folder)
    for name, entry in files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise BrokenSeal(f"{name} is missing") from error
        if size != entry["bytes"]:
            raise BrokenSeal(f"{name} has {size:,} bytes instead of {entry['bytes']:,}")
    return files
