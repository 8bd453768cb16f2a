"""A data set of records that were made of others: the layout on disk of a converted one, all of it or nothing.

Media are copied into it by the hash of their bytes, from converted sets by a second name where they lie on the same disk. Knows
records and their media, not how they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from aria_finetune import __version__
from aria_finetune.conversion.dataset import MANIFEST, REJECTS, REPORT, Shard, shard_name
from aria_finetune.conversion.media_check import CheckedMedia
from aria_finetune.conversion.media_store import MEDIA_FOLDER, CopyingStore
from aria_finetune.conversion.options import Reject
from aria_finetune.conversion.shards import JsonlShards
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import SCHEMA_VERSION, Media, Record
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.row_groups import RowGroups
from aria_finetune.redaction import redact_values
from aria_finetune.staging import staged_folder


@dataclass
class DerivedSet:
    """Takes records; `report` and `rejects` are written beside them when it is complete."""

    folder: Path
    report: dict[str, Any] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._copying, self._linking = CopyingStore(self.folder), CopyingStore(self.folder, link=True)
        self._packed = RowGroups()
        self._shards = JsonlShards(lambda number: self.folder / shard_name(number))

    def add(self, record: Record) -> None:
        """Write a record, and its media if they are not there yet.

        Raises:
            UserError: a medium can't be read.
        """
        try:
            media = tuple(map(self._kept, record.media))
        except MediaError as error:
            raise UserError(str(error), where=record.id, fix="restore the file, or convert the data again") from error
        self._shards.add(replace(record, media=media))

    def _kept(self, medium: Media) -> Media:
        path = Path(medium.path or "")
        content = path if medium.packed is None else self._packed.read(path, medium.packed)
        # Files of a converted set change no more; those of a person may, and a second name would change with them.
        store = self._linking if medium.sha256 else self._copying
        kept = store.keep(CheckedMedia(content, medium.mime))
        return replace(medium, path=kept.path, sha256=kept.sha256, packed=None)

    def _finish(self, form: str, settings: Mapping[str, Any]) -> None:
        self._shards.close()
        shards = [Shard(path.name, records, sha256) for path, records, sha256 in self._shards.written]
        files = [path for path in (self.folder / MEDIA_FOLDER).rglob("*") if path.is_file()]
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "converter_version": __version__,
            "format": form,
            "counts": {
                "written": sum(shard.records for shard in shards),
                "rejected": len(self.rejects),
                "media_files": len(files),
                "media_bytes": sum(path.stat().st_size for path in files),
            },
            "shards": [asdict(shard) for shard in shards],
            # What was not used is told, and is no reason not to read the set.
            "options": {**settings, "max_rejects": len(self.rejects), "media": "copy", "verify": "header"},
            "sources": [],
        }
        lines = [orjson.dumps(redact_values(asdict(reject))) + b"\n" for reject in self.rejects]
        (self.folder / REJECTS).write_bytes(b"".join(lines))
        for name, value in ((MANIFEST, manifest), (REPORT, self.report)):
            (self.folder / name).write_bytes(orjson.dumps(redact_values(value), option=orjson.OPT_INDENT_2) + b"\n")


@contextmanager
def derived_set(output: Path, form: str, settings: Mapping[str, Any]) -> Iterator[DerivedSet]:
    """A data set that is at `output` when the block ends well.

    Args:
        output: a folder, which must not exist or be empty.
        form: what the manifest calls the format.
        settings: what the manifest says of how it was made, plain JSON values.

    Raises:
        UserError: the output is in use.
    """
    with staged_folder(output) as folder:
        made = DerivedSet(folder)
        yield made
        made._finish(form, settings)  # noqa: SLF001 (of this file)


def not_used(record: Record, error: RecordError, part: int | None = None) -> Reject:
    """The line for a record, or for a part of it, that was left out."""
    source = record.source
    return Reject(source.file, source.ordinal, part, record.id, error.reason, error.detail)
