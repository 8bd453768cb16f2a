"""Data files of a converted set: JSON Lines, or Parquet with the bytes of media in it. Knows records, not sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import IO, Any, Protocol

import orjson

from aria_finetune.conversion.options import Packing
from aria_finetune.data_formats.record import Record
from aria_finetune.provenance import hash_file

RECORDS_PER_SHARD = 100_000
PARQUET_SHARD_BYTES = 512 << 20
ROW_GROUP_RECORDS = 100
ROW_GROUP_BYTES = 32 << 20
"""Of media, from which on a row group ends: training keeps some row groups in memory (media/row_groups.py)."""
_BUFFERED_LINES = 100
"""Few enough for the processor's caches; with 2,000 a conversion took a fifth longer."""


class ShardWriter(Protocol):
    """Writes records into one data file after another; `written` are their paths, records and hashes."""

    written: list[tuple[Path, int, str]]

    def add(self, record: Record) -> None:
        """Write a record."""
        ...

    def close(self) -> None:
        """Finish the last file."""
        ...


def shard_writer(packing: Packing, name: Callable[[int], Path], read: Callable[[str], bytes]) -> ShardWriter:
    """A writer of files `name(0)`, `name(1)`, ...; `read` gives the bytes of a medium by its path in a record."""
    return JsonlShards(name) if packing == "jsonl" else ParquetShards(name, read)


class JsonlShards:
    """A JSON object a line, `RECORDS_PER_SHARD` in a file."""

    def __init__(self, name: Callable[[int], Path]) -> None:
        self.written: list[tuple[Path, int, str]] = []
        self._name = name
        self._lines: list[bytes] = []
        self._records = 0
        self._file: IO[bytes] | None = None
        self._hasher = hashlib.sha256()

    def add(self, record: Record) -> None:
        """Write a record."""
        self._lines.append(orjson.dumps(record.to_dict(), option=orjson.OPT_APPEND_NEWLINE))
        self._records += 1
        if len(self._lines) == _BUFFERED_LINES:
            self._flush()
        if self._records == RECORDS_PER_SHARD:
            self._finish()

    def close(self) -> None:
        """Finish the last file; there is at least one, if only an empty one."""
        if self._records or not self.written:
            self._finish()

    def _flush(self) -> None:
        if self._file is None:
            self._file = self._name(len(self.written)).open("wb")
        data = b"".join(self._lines)
        self._lines.clear()
        self._hasher.update(data)
        self._file.write(data)

    def _finish(self) -> None:
        self._flush()
        if self._file is not None:
            self._file.close()
        self.written.append((self._name(len(self.written)), self._records, self._hasher.hexdigest()))
        self._file, self._records, self._hasher = None, 0, hashlib.sha256()


class ParquetShards:
    """The same records as Parquet, `bytes` of media filled in; row groups of 100 or 32 MiB, nothing compressed twice."""

    def __init__(self, name: Callable[[int], Path], read: Callable[[str], bytes]) -> None:
        self.written: list[tuple[Path, int, str]] = []
        self._name = name
        self._read = read
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None
        self._records = self._bytes = self._flushed = 0

    def add(self, record: Record) -> None:
        """Write a record."""
        row = record.to_dict()
        row["media"] = [self._with_bytes(medium) for medium in row["media"]]
        self._rows.append(row)
        self._records += 1
        if len(self._rows) == ROW_GROUP_RECORDS or self._bytes - self._flushed >= ROW_GROUP_BYTES:
            self._flush()
        if self._bytes >= PARQUET_SHARD_BYTES:
            self._finish()

    def close(self) -> None:
        """Finish the last file; there is at least one, if only an empty one."""
        if self._records or not self.written:
            self._finish()

    def _with_bytes(self, medium: dict[str, Any]) -> dict[str, Any]:
        path = medium["path"]
        try:
            content = None if path is None else self._read(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            # Nobody looked for it; whoever reads the record finds out the same.
            if not PurePath(path).is_absolute():
                raise
            content = None
        if content is None:
            return {**medium, "bytes": None}
        self._bytes += len(content)
        return {**medium, "path": None, "bytes": content}

    def _flush(self) -> None:
        import pyarrow as pa  # noqa: PLC0415 (slow to import, and most sets are JSON Lines)
        from pyarrow import parquet  # noqa: PLC0415

        schema = parquet_schema()
        if self._writer is None:
            # Media are compressed already; dictionaries would hold every picture in memory.
            path = self._name(len(self.written))
            self._writer = parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False)
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema), row_group_size=ROW_GROUP_RECORDS)
        self._rows.clear()
        self._flushed = self._bytes

    def _finish(self) -> None:
        self._flush()
        self._writer.close()
        path = self._name(len(self.written))
        self.written.append((path, self._records, hash_file(path)))
        self._writer, self._records, self._bytes, self._flushed = None, 0, 0, 0


def parquet_schema() -> Any:
    """The Arrow schema of the canonical record, with `bytes` in `media`."""
    import pyarrow as pa  # noqa: PLC0415

    part = pa.struct([("type", pa.string()), ("text", pa.string()), ("media", pa.int32())])
    message = pa.struct([("role", pa.string()), ("content", pa.list_(part)), ("train", pa.bool_())])
    whole, real, text = pa.int32(), pa.float64(), pa.string()
    medium = pa.struct(
        [("kind", text), ("path", text), ("bytes", pa.binary()), ("sha256", text), ("mime", text), ("width", whole),
         ("height", whole), ("frames", whole), ("duration", real), ("start", real), ("end", real),
         ("num_frames", whole), ("page", whole), ("origin", text)]
    )  # fmt: skip
    source = pa.struct([("format", text), ("file", text), ("ordinal", pa.int64()), ("converter_version", text)])
    return pa.schema(
        [("id", text), ("messages", pa.list_(message)), ("media", pa.list_(medium)), ("references", pa.list_(text)),
         ("tools", text), ("meta", text), ("source", source)]
    )  # fmt: skip
