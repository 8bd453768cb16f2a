"""Keeping media that were checked: copied or linked into a data set by the hash of their bytes, or left in place."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from aria_finetune.conversion.media_check import REMEMBERED_FILES, CheckedMedia
from aria_finetune.conversion.options import MediaPolicy
from aria_finetune.errors import MediaError

MEDIA_FOLDER = "media"
INCOMING = "incoming-"
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
    "image/apng": "apng",
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
    "application/pdf": "pdf",
}


@dataclass(slots=True)
class KeptMedia:
    """The path to write into a record, None where there is no file, and the hash of the bytes; empty text where nobody
    read them all.
    """

    path: str | None
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

    def read(self, path: str) -> bytes:
        """The bytes of a medium that was kept, by its path."""
        ...


def media_store(policy: MediaPolicy, folder: Path) -> MediaStore:
    """The store of a data set in `folder`."""
    if policy == "reference":
        return InPlaceStore(folder / MEDIA_FOLDER, relative_to=folder)
    return CopyingStore(folder, link=policy == "hardlink")


class CopyingStore:
    """Copies every medium as it is to `media/ab/<sha256>.<extension>` in a folder; equal bytes are held once.

    With `link` a file gets that name as a second one, where it lies on the same disk. Several processes may use one
    folder.
    """

    def __init__(self, folder: Path, *, link: bool = False) -> None:
        self._folder = folder
        self._link = link
        self._of_file = lru_cache(REMEMBERED_FILES)(self._copy_file)

    def keep(self, medium: CheckedMedia) -> KeptMedia:
        """Copy the medium; the path is relative to the folder."""
        if isinstance(medium.content, Path):
            return self._of_file(medium.content, medium.mime)
        if medium.content is None or isinstance(medium.content, str):
            return KeptMedia(None, "")  # nobody looked for it, so that it can't be copied
        return self._write(iter([medium.content]), _extension(medium.mime, None))

    def read(self, path: str) -> bytes:
        """The bytes of a medium that was kept, by its path."""
        return (self._folder / path).read_bytes()

    def _copy_file(self, path: Path, mime: str) -> KeptMedia:
        if not self._link:
            return self._write(_chunks(path), _extension(mime, path))
        hasher = hashlib.sha256()
        for chunk in _chunks(path):
            hasher.update(chunk)
        kept = KeptMedia(_name(hasher.hexdigest(), _extension(mime, path)), hasher.hexdigest())
        target = self._target(kept)
        if target.exists():
            return kept
        try:
            os.link(path, target)
        except FileExistsError:
            return kept
        except OSError:
            return self._write(_chunks(path), _extension(mime, path))
        return kept

    def _write(self, chunks: Iterator[bytes], extension: str) -> KeptMedia:
        hasher = hashlib.sha256()
        unnamed = self._folder / MEDIA_FOLDER / _incoming()
        unnamed.parent.mkdir(exist_ok=True)
        try:
            with unnamed.open("wb") as stream:
                for chunk in chunks:
                    hasher.update(chunk)
                    stream.write(chunk)
            kept = KeptMedia(_name(hasher.hexdigest(), extension), hasher.hexdigest())
            target = self._target(kept)
            if not target.exists():
                unnamed.replace(target)
        finally:
            unnamed.unlink(missing_ok=True)
        return kept

    def _target(self, kept: KeptMedia) -> Path:
        target = self._folder / (kept.path or "")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


class InPlaceStore:
    """Leaves files where they are; only media that came as bytes are written, below `folder`.

    Their paths are absolute, or relative to another folder.
    """

    def __init__(self, folder: Path, *, relative_to: Path | None = None) -> None:
        self._folder = Path(os.path.realpath(folder))
        self._relative_to = None if relative_to is None else Path(os.path.realpath(relative_to))

    def keep(self, medium: CheckedMedia) -> KeptMedia:
        """The real path of the medium, without a hash unless it came as bytes."""
        if medium.content is None or isinstance(medium.content, str):
            return KeptMedia(medium.content, "")
        if isinstance(medium.content, Path):
            return KeptMedia(str(medium.content), "")
        sha256 = hashlib.sha256(medium.content).hexdigest()
        target = self._folder / sha256[:2] / f"{sha256}.{_extension(medium.mime, None)}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            unnamed = self._folder / _incoming()
            unnamed.write_bytes(medium.content)
            unnamed.replace(target)
        path = target if self._relative_to is None else target.relative_to(self._relative_to)
        return KeptMedia(path.as_posix(), sha256)

    def read(self, path: str) -> bytes:
        """The bytes of a medium that was kept, by its path."""
        return ((self._relative_to or self._folder) / path).read_bytes()


def _incoming() -> str:
    """A name that no other process takes, be it on another machine."""
    return f"{INCOMING}{secrets.token_hex(8)}"


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise MediaError("media_unreadable", f"{path.name} can't be read: {error.strerror}") from error


def _name(sha256: str, extension: str) -> str:
    return f"{MEDIA_FOLDER}/{sha256[:2]}/{sha256}.{extension}"


def _extension(mime: str, path: Path | None) -> str:
    suffix = path.suffix[1:].lower() if path else ""
    return _EXTENSIONS.get(mime) or (suffix if suffix.isascii() and suffix.isalnum() else "bin")
