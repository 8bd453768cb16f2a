"""Reading a converted data set back. Knows its layout on disk; knows no source format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from aria_finetune.data_formats.record import SCHEMA_VERSION, Media, Record
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.images import ImageLimits, probe_image
from aria_finetune.media.videos import VideoLimits, probe_video
from aria_finetune.provenance import hash_file

MANIFEST = "manifest.json"
REJECTS = "rejects.jsonl"
REPORT = "report.json"
_CONVERT_AGAIN = "convert the source again"


@dataclass(frozen=True, slots=True)
class Shard:
    """One data file of the set: its name, how many records it holds, and the hash of its bytes."""

    file: str
    records: int
    sha256: str


def shard_name(number: int) -> str:
    """The file name of the shard `number`, counted from 0."""
    return f"data-{number:05d}.jsonl"


def is_dataset(path: Path) -> bool:
    """Whether `path` is the folder of a converted data set, sound or not."""
    return (path / MANIFEST).is_file() and (path / shard_name(0)).is_file()


def read_dataset(folder: Path, *, verify: bool = False) -> Iterator[Record]:
    """The records of a data set in order, the paths of their media real ones: absolute and free of links.

    Media that were converted without a look into them (`verify` of `none` or `stat`) are measured here. With
    `verify` the bytes of each shard are first compared with the hash in the manifest.

    Raises:
        UserError: not a data set, one of another schema version, or damaged; or a link leads out of it.
    """
    root = folder.absolute()
    for shard in _shards(root):
        if verify:
            _check_hash(root / shard.file, shard)
        yield from _records(root, shard)


def _shards(root: Path) -> list[Shard]:
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        shards = [Shard(**shard) for shard in manifest["shards"]]
    except FileNotFoundError as error:
        raise UserError("it is no converted data set", where=str(root), fix=f"there is no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("the manifest is damaged", where=str(root / MANIFEST), fix=_CONVERT_AGAIN) from error
    if version != SCHEMA_VERSION:
        message = f"schema version {version}, and this program reads {SCHEMA_VERSION}"
        raise UserError(message, where=str(root / MANIFEST), fix=_CONVERT_AGAIN)
    return shards


def _records(root: Path, shard: Shard) -> Iterator[Record]:
    path, count, real_root = root / shard.file, 0, Path(os.path.realpath(root))
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            for count, line in enumerate(stream, 1):
                yield _record(real_root, line, f"{path}:{count}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the data set is damaged: {error}", where=str(path), fix=_CONVERT_AGAIN) from error
    if count != shard.records:
        message = f"the data set is damaged: {count} records where the manifest says {shard.records}"
        raise UserError(message, where=str(path), fix=_CONVERT_AGAIN)


def _record(root: Path, line: str, where: str) -> Record:
    try:
        record = Record.from_dict(json.loads(line))
        return replace(record, media=tuple(_usable(medium, root) for medium in record.media))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the data set is damaged: {error}", where=where, fix=_CONVERT_AGAIN) from error
    except MediaError as error:
        fix = f"{_CONVERT_AGAIN} with --verify header, which rejects such records"
        raise UserError(str(error), where=where, fix=fix) from error


def _usable(medium: Media, root: Path) -> Media:
    path = PurePosixPath(medium.path or "")
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"the media path {medium.path!r:.80} leaves the data set")
    file = Path(os.path.realpath(root / path))
    if not file.is_relative_to(root):
        raise ValueError(f"the media path {medium.path!r:.80} is a link that leaves the data set")
    changes: dict[str, Any] = {"path": str(file)} | (_measured(medium, file) if medium.width == 0 else {})
    return replace(medium, **changes)


def _measured(medium: Media, file: Path) -> dict[str, Any]:
    if medium.kind == "image":
        image = probe_image(file, ImageLimits())
        return {"width": image.width, "height": image.height, "mime": image.mime, "frames": image.frames}
    video = probe_video(file, VideoLimits())
    sizes = {"width": video.width, "height": video.height, "mime": video.mime}
    return sizes | {"frames": video.frames, "duration": video.duration}


def _check_hash(path: Path, shard: Shard) -> None:
    try:
        found = hash_file(path)
    except OSError as error:
        raise UserError(f"the data set is damaged: {error}", where=str(path), fix=_CONVERT_AGAIN) from error
    if found != shard.sha256:
        message = "the data set is damaged: the shard is not the one that was written"
        raise UserError(message, where=str(path), fix=_CONVERT_AGAIN)
