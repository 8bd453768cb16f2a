"""Where a result comes from: versions of packages, and fingerprints of data, rows and checkpoints.

Knows files and hashes, nothing of what is done with them.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "safetensors",
    "pillow",
    "av",
)
SAMPLED_BLOCKS, SAMPLED_BYTES = 64, 4096
"""How much of a weight file is read for its fingerprint."""
HASHERS = 4


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in ("aria-finetune", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a converted folder's manifest, which holds the hashes of its shards."""
    file = path / "manifest.json" if path.is_dir() else path
    if file.is_dir() or not file.exists():
        return "unknown"
    return hash_file(file)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def wrong_files(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """Which files of a folder are missing or do not have the SHA-256 they should have."""

    def is_wrong(name: str) -> bool:
        path = folder / name
        return not path.is_file() or hash_file(path) != hashes[name]

    with ThreadPoolExecutor(HASHERS) as pool:
        names = sorted(hashes)
        return [name for name, wrong in zip(names, pool.map(is_wrong, names), strict=True) if wrong]


def fingerprint_objects(objects: Iterable[Any]) -> str:
    """SHA-256 over the representations of frozen values, such as planned rows: equal only if all of them are."""
    digest = hashlib.sha256()
    for value in objects:
        digest.update(repr(value).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def fingerprint_weights(folder: Path, shards: Iterable[str]) -> str:
    """SHA-256 over names, sizes, headers and a sample of the bytes of safetensors files.

    It tells a fine-tuned checkpoint from its base at once, where reading 50 GB would take minutes.
    """
    digest = hashlib.sha256()
    for name in shards:
        path = folder / name
        size = path.stat().st_size
        with path.open("rb") as opened:
            header = opened.read(min(int.from_bytes(opened.read(8), "little"), size))
            digest.update(f"{name} {size}\n".encode() + header)
            for block in range(SAMPLED_BLOCKS):
                opened.seek(size * block // SAMPLED_BLOCKS)
                digest.update(opened.read(SAMPLED_BYTES))
    return digest.hexdigest()
