"""Keeping media that were checked: copied into a data set by the hash of their bytes, or left where they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from aria_finetune.conversion.media_check import REMEMBERED_FILES, CheckedMedia
from aria_finetune.errors import MediaError

MEDIA_FOLDER = "media"
CHUNK_BYTES = 1 << 20

_EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tif",
    "image/jp2": "jp2",
    "image/avif": "avif",
    "image/x-portable-anymap": "pnm",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
    "video/mpeg": "mpg",
    "video/mp2t": "ts",
    "video/ogg": "ogv",
    "video/x-flv": "flv",
    "video/x-ms-asf": "wmv",
    "video/x-ivf": "ivf",
    "video/h264": "h264",
    "video/h265": "h265",
    "image/apng": "apng",
}


@dataclass(frozen=True, slots=True)
class KeptMedia:
    """The path to write into a record, and the hash of the bytes; empty text where nobody read them all."""

    path: str
    sha256: str


class MediaStore(Protocol):
    """Where checked media go."""

    def keep(self, medium: CheckedMedia) -> KeptMedia:
        """Make the medium last and say where it is.

        Raises:
            MediaError: `media_unreadable`, its file can't be read.
            OSError: the copy can't be written.
        """
        ...


class CopyingStore:
    """Copies every medium as it is to `media/ab/<sha256>.<extension>` in a folder; equal bytes are held once.

    `files` and `size_bytes` count what lies there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of_file = lru_cache(REMEMBERED_FILES)(self._copy_file)
        self.files = 0
        self.size_bytes = 0

    def keep(self, medium: CheckedMedia) -> KeptMedia:
        """Copy the medium; the path is relative to the folder."""
        if isinstance(medium.content, Path):
            return self._of_file(medium.content, medium.mime)
        return self._write(iter([medium.content]), _extension(medium.mime, None))

    def _copy_file(self, path: Path, mime: str) -> KeptMedia:
        return self._write(_chunks(path), _extension(mime, path))

    def _write(self, chunks: Iterator[bytes], extension: str) -> KeptMedia:
        hasher, size = hashlib.sha256(), 0
        unnamed = self._folder / MEDIA_FOLDER / "incoming"
        unnamed.parent.mkdir(exist_ok=True)
        try:
            with unnamed.open("wb") as stream:
                for chunk in chunks:
                    hasher.update(chunk)
                    size += stream.write(chunk)
            sha256 = hasher.hexdigest()
            name = f"{MEDIA_FOLDER}/{sha256[:2]}/{sha256}.{extension}"
            target = self._folder / name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                unnamed.replace(target)
                self.files += 1
                self.size_bytes += size
        finally:
            unnamed.unlink(missing_ok=True)
        return KeptMedia(name, sha256)


class InPlaceStore:
    """Leaves files where they are; only media that came as data URIs are written, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, medium: CheckedMedia) -> KeptMedia:
        """The real path of the medium, without a hash unless it came as bytes."""
        if isinstance(medium.content, Path):
            return KeptMedia(str(medium.content), "")
        sha256 = hashlib.sha256(medium.content).hexdigest()
        target = Path(os.path.realpath(self._folder)) / sha256[:2] / f"{sha256}.{_extension(medium.mime, None)}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            unnamed = target.with_name(f"{target.name}.incoming")
            unnamed.write_bytes(medium.content)
            unnamed.replace(target)
        return KeptMedia(str(target), sha256)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise MediaError("media_unreadable", f"{path.name} can't be read: {error.strerror}") from error


def _extension(mime: str, path: Path | None) -> str:
    suffix = path.suffix[1:].lower() if path else ""
    return _EXTENSIONS.get(mime) or (suffix if suffix.isascii() and suffix.isalnum() else "bin")
