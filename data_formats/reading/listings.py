"""Folders that are sources by what lies in them: images in a folder for each class, or PDFs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

_IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_LOOKED_AT = 1000


def kind_of(folder: Path) -> Literal["class_folders", "pdf_folder"] | None:
    """What a folder without a data file is a source of, or None.

    By the endings of names, which is all that there is to go by; the files themselves are judged by their bytes.
    """
    entries = list(islice((entry for entry in folder.iterdir() if not entry.name.startswith(".")), _LOOKED_AT))
    if any(entry.suffix.lower() == ".pdf" for entry in entries):
        return "pdf_folder"
    folders = [entry for entry in entries if entry.is_dir()]
    if folders and any(_is_image(file) for inner in folders for file in islice(inner.iterdir(), _LOOKED_AT)):
        return "class_folders"
    return None


def labelled_images(folder: Path) -> Iterator[object]:
    """`{"file_name": "cat/1.jpg", "label": "cat"}` for every image in a folder of the folder, in order of names."""
    for inner in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        for file in sorted(entry for entry in inner.rglob("*") if _is_image(entry)):
            yield {"file_name": file.relative_to(folder).as_posix(), "label": inner.name}


def pdfs(folder: Path) -> Iterator[object]:
    """`{"document": "a.pdf"}` for every PDF in the folder and its folders, in order of names."""
    for file in sorted(entry for entry in folder.rglob("*") if entry.suffix.lower() == ".pdf"):
        yield {"document": file.relative_to(folder).as_posix()}


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _IMAGE_ENDINGS
