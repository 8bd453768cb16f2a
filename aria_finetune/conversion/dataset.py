"""Reading a converted data set back. Knows its layout on disk; knows no source format."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from aria_finetune.conversion.media_check import CheckedMedia, look_into
from aria_finetune.conversion.media_store import InPlaceStore
from aria_finetune.conversion.options import Reject
from aria_finetune.data_formats.record import SCHEMA_VERSION, Media, Record
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.inspection import Inspector
from aria_finetune.media.row_groups import MEDIA_COLUMN, Place, is_bytes_column
from aria_finetune.provenance import hash_file

MANIFEST = "manifest.json"
REJECTS = "rejects.jsonl"
REPORT = "report.json"
PACKINGS = ("jsonl", "parquet")
_CONVERT_AGAIN = "convert the source again"
_READ_ROWS = 32
"""Rows of which the media that are written into files are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One data file of the set: its name, how many records it holds, and the hash of its bytes."""

    file: str
    records: int
    sha256: str


def shard_name(number: int, packing: str = "jsonl") -> str:
    """The file name of the shard `number`, counted from 0."""
    return f"data-{number:05d}.{packing}"


def is_dataset(path: Path) -> bool:
    """Whether `path` is the folder of a converted data set, sound or not."""
    return (path / MANIFEST).is_file() and any((path / shard_name(0, packing)).is_file() for packing in PACKINGS)


def is_over_limit(path: Path) -> bool:
    """Whether `path` is a converted data set of which more was rejected than was allowed: it is not to be read."""
    if not is_dataset(path):
        return False
    try:
        return _Manifest.read(path).over_limit
    except UserError:
        return False


def read_dataset(
    folder: Path,
    *,
    verify: bool = False,
    inspector: Inspector | None = None,
    media_store: Path | None = None,
    on_reject: Callable[[Reject], None] | None = None,
) -> Iterator[Record]:
    """The records of a data set in order, the paths of their media real ones: absolute and free of links.

    Args:
        folder: the data set.
        verify: compare the bytes of each shard with its hash first.
        inspector: measures media that were converted without a look into them; one of its own if none is given.
        media_store: folder for videos and documents of a set that is packed in Parquet. Images stay in it, and have
            their place in `packed`.
        on_reject: gets a record of which such a medium can't be used.

    Raises:
        UserError: not a data set, one of another schema version, with too many rejects, or damaged; a link leads out of
            it; or, without `on_reject`, a medium can't be used.
    """
    root = folder.absolute()
    manifest = _Manifest.read(root)
    if manifest.over_limit:
        raise UserError(
            f"{manifest.rejected} conversations were rejected when it was converted, {manifest.max_rejects} allowed",
            where=str(root),
            fix=f"see {root / REJECTS}; convert again, with --max-rejects {manifest.rejected} to do without them",
        )
    reader = _Reader(root, inspector or Inspector(), media_store, on_reject, elsewhere=manifest.elsewhere)
    for shard in manifest.shards:
        if verify:
            _check_hash(root / shard.file, shard)
        yield from reader.records(shard)


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What the manifest of a data set says; `elsewhere` is whether media were left where they are."""

    shards: list[Shard]
    rejected: int
    max_rejects: int
    elsewhere: bool

    @property
    def over_limit(self) -> bool:
        return self.rejected > self.max_rejects

    @classmethod
    def read(cls, root: Path) -> _Manifest:
        try:
            manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
            version, options = manifest["schema_version"], manifest["options"]
            shards = [Shard(**shard) for shard in manifest["shards"]]
            rejected, allowed = manifest["counts"]["rejected"], options["max_rejects"]
            left = options.get("media") == "reference" or options.get("verify") == "none"
        except FileNotFoundError as error:
            raise UserError("it is no converted data set", where=str(root), fix=f"there is no {MANIFEST}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError("the manifest is damaged", where=str(root / MANIFEST), fix=_CONVERT_AGAIN) from error
        if version != SCHEMA_VERSION:
            message = f"schema version {version}, and this program reads {SCHEMA_VERSION}"
            raise UserError(message, where=str(root / MANIFEST), fix=_CONVERT_AGAIN)
        return cls(shards, rejected, allowed, left)


class _Reader:
    """Reads the shards of one data set."""

    def __init__(
        self,
        root: Path,
        inspector: Inspector,
        media_store: Path | None,
        on_reject: Callable[[Reject], None] | None,
        *,
        elsewhere: bool,
    ) -> None:
        self._root = Path(os.path.realpath(root))
        self._shown_root = root
        self._inspector = inspector
        self._store = None if media_store is None else InPlaceStore(media_store)
        self._on_reject = on_reject
        self._elsewhere = elsewhere

    def records(self, shard: Shard) -> Iterator[Record]:
        path, count = self._shown_root / shard.file, 0
        rows: Iterator[str | dict[str, Any]] = self._rows(path) if path.suffix == ".parquet" else _lines(path)
        for count, row in enumerate(rows, 1):
            record = self._record(row, f"{path}:{count}")
            if record is not None:
                yield record
        if count != shard.records:
            message = f"the data set is damaged: {count} records where the manifest says {shard.records}"
            raise UserError(message, where=str(path), fix=_CONVERT_AGAIN)

    def _record(self, row: str | dict[str, Any], where: str) -> Record | None:
        try:
            places = (
                itertools.repeat(None) if isinstance(row, str) else [medium.pop("packed") for medium in row["media"]]
            )
            record = Record.from_dict(json.loads(row) if isinstance(row, str) else row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the data set is damaged: {error}", where=where, fix=_CONVERT_AGAIN) from error
        try:
            return replace(record, media=tuple(map(self._usable, record.media, places)))
        except ValueError as error:
            raise UserError(f"the data set is damaged: {error}", where=where, fix=_CONVERT_AGAIN) from error
        except MediaError as error:
            if self._on_reject is None:
                fix = f"{_CONVERT_AGAIN} with --verify header, which rejects such records"
                raise UserError(str(error), where=where, fix=fix) from error
            source = record.source
            self._on_reject(Reject(source.file, source.ordinal, None, record.id, error.reason, error.detail))
            return None

    def _usable(self, medium: Media, packed: Place | None) -> Media:
        if packed is not None:
            return replace(medium, packed=packed)
        file = self._file(medium)
        if medium.width:
            return replace(medium, path=str(file))
        seen = look_into(file, medium.kind, self._inspector, page=medium.page)
        return replace(
            medium,
            path=str(file),
            mime=seen.mime,
            width=seen.width,
            height=seen.height,
            frames=seen.frames,
            duration=seen.duration,
        )

    def _file(self, medium: Media) -> Path:
        if medium.path is None:
            raise MediaError("media_missing", f"{medium.origin!r:.200} was not looked for when it was converted")
        path = PurePosixPath(medium.path)
        if path.is_absolute() and self._elsewhere:
            file = Path(os.path.realpath(path))
            if not file.exists():
                raise MediaError("media_missing", f"{path} does not exist")
            return file
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"the media path {medium.path!r:.80} leaves the data set")
        file = Path(os.path.realpath(self._root / path))
        if not file.is_relative_to(self._root):
            raise ValueError(f"the media path {medium.path!r:.80} is a link that leaves the data set")
        return file

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        """The rows of a Parquet file, with the bytes of videos and documents written into the store."""
        if self._store is None:
            raise UserError("its media are packed in Parquet", where=str(path), fix="read it with a folder for them")
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 (slow to import, and few sets are packed)

        try:
            with parquet.ParquetFile(path) as table:
                for group in range(table.num_row_groups):
                    yield from self._group_rows(table, group, os.path.realpath(path))
        except (ArrowException, OSError, KeyError, TypeError) as error:
            raise UserError(f"the data set is damaged: {error}", where=str(path), fix=_CONVERT_AGAIN) from error

    def _group_rows(self, table: Any, group: int, file: str) -> Iterator[dict[str, Any]]:
        """The rows of a row group. Bytes are read only where something other than measured images may have them."""
        columns = [table.schema.column(index).path for index in range(len(table.schema))]
        rows = table.read_row_group(group, columns=[name for name in columns if not is_bytes_column(name)]).to_pylist()
        if all(_stays_packed(medium) or medium["path"] for row in rows for medium in row["media"]):
            contents: Iterator[list[dict[str, Any]]] = iter([{"bytes": None}] * len(row["media"]) for row in rows)
        else:
            contents = _contents(table, group, [name for name in columns if is_bytes_column(name)])
        for number, (row, media) in enumerate(zip(rows, contents, strict=True)):
            kept = [
                self._placed(medium, content["bytes"], file, (group, number, place))
                for place, (medium, content) in enumerate(zip(row["media"], media, strict=True))
            ]
            yield {**row, "media": kept}

    def _placed(self, medium: dict[str, Any], content: bytes | None, file: str, place: Place) -> dict[str, Any]:
        if _stays_packed(medium):
            return {**medium, "path": file, "packed": place}
        if content is None or self._store is None:
            return {**medium, "packed": None}
        self._elsewhere = True  # the store's paths are absolute
        return {**medium, "packed": None, "path": self._store.keep(CheckedMedia(content, medium["mime"])).path}


def _stays_packed(medium: Mapping[str, Any]) -> bool:
    """Whether it can be shown without a file of its own: an image whose size is known."""
    return bool(medium["kind"] == "image" and medium["path"] is None and medium["width"])


def _contents(table: Any, group: int, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    for batch in table.iter_batches(_READ_ROWS, row_groups=[group], columns=columns):
        for row in batch.to_pylist():
            yield row[MEDIA_COLUMN]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            yield from stream
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the data set is damaged: {error}", where=str(path), fix=_CONVERT_AGAIN) from error


def _check_hash(path: Path, shard: Shard) -> None:
    try:
        found = hash_file(path)
    except OSError as error:
        raise UserError(f"the data set is damaged: {error}", where=str(path), fix=_CONVERT_AGAIN) from error
    if found != shard.sha256:
        message = "the data set is damaged: the shard is not the one that was written"
        raise UserError(message, where=str(path), fix=_CONVERT_AGAIN)
