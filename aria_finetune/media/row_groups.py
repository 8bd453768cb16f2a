"""Media that lie in Parquet files: their bytes, a row group at a time, of which the last ones are kept.

A row group is the least that can be read, so that whoever asks for its media at about the same time reads it once. Knows
nothing of records, nor of what the bytes are.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aria_finetune.errors import MediaError

MEDIA_COLUMN = "media"
KEPT_GROUPS = 16
"""Some more than an epoch's order goes through at a time: workers are not quite in step with it."""
KEPT_BYTES = 512 << 20
"""So much is kept at most, one group aside: 16 groups as the converter writes them."""

Place = tuple[int, int, int]
"""Row group, row in it, and which medium of the row, each counted from 0."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The media of a row group: where those of each row begin, and the bytes of all of them, as Arrow arrays."""

    first: Any
    contents: Any

    def content(self, row: int, medium: int) -> bytes | None:
        """The bytes of a medium, None where there are none.

        Raises:
            IndexError: there is no such row, or it has not so many media.
        """
        start, end = self.first[row].as_py(), self.first[row + 1].as_py()
        if medium >= end - start:
            raise IndexError(medium)
        content: bytes | None = self.contents[start + medium].as_py()
        return content


class RowGroups:
    """Reads media of Parquet files; a copy, a pickled one and a forked one keep what they read themselves.

    Args:
        groups: how many row groups are kept at most.
        kept_bytes: how many bytes they may have together.
    """

    def __init__(self, groups: int = KEPT_GROUPS, kept_bytes: int = KEPT_BYTES) -> None:
        self._most, self._kept_bytes = groups, kept_bytes
        self._groups: OrderedDict[tuple[Path, int], _Group] = OrderedDict()
        self.reads = 0
        """How many row groups were read."""

    def __reduce__(self) -> tuple[type[RowGroups], tuple[int, int]]:
        return type(self), (self._most, self._kept_bytes)

    def read(self, path: Path, place: Place) -> bytes:
        """The bytes of a medium.

        Args:
            path: the Parquet file, a real path, free of links.
            place: where in it.

        Raises:
            MediaError: `media_unsafe_path` when there is a link in the path; `media_missing` without the file or the
                bytes; `media_unreadable` when the file can't be read; `media_changed` when it has no such place.
        """
        group, row, medium = place
        try:
            content = self._group(path, group).content(row, medium)
        except IndexError as error:
            raise MediaError("media_changed", f"{path.name} is no longer the file that it was") from error
        if content is None:
            raise MediaError("media_missing", f"its bytes are not in {path.name}")
        return content

    def _group(self, path: Path, number: int) -> _Group:
        key = (path, number)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        group = self._groups[key] = _read_group(path, number)
        self.reads += 1
        while len(self._groups) > 1 and (len(self._groups) > self._most or self._bytes() > self._kept_bytes):
            self._groups.popitem(last=False)
        return group

    def _bytes(self) -> int:
        return sum(group.contents.nbytes for group in self._groups.values())


def _read_group(path: Path, number: int) -> _Group:
    from pyarrow import ArrowException, parquet  # noqa: PLC0415 (slow to import, and few sets are packed)

    if os.path.realpath(path) != str(path):
        raise MediaError("media_unsafe_path", "a link has come into its path since the row was planned")
    try:
        with parquet.ParquetFile(path) as file:
            if number >= file.num_row_groups:
                raise IndexError(number)
            # One thread: of a loader's workers each has a processor, and threads do not live through a fork.
            table = file.read_row_group(number, columns=[_bytes_column(file)], use_threads=False)
        lists = table.column(MEDIA_COLUMN).combine_chunks()
    except FileNotFoundError as error:
        raise MediaError("media_missing", f"{path} does not exist") from error
    except (ArrowException, OSError, KeyError, ValueError) as error:
        raise MediaError("media_unreadable", f"{path.name} can't be read: {error}") from error
    return _Group(lists.offsets, lists.values.field("bytes"))


def _bytes_column(file: Any) -> str:
    """The path of the column: what stands for an element of a list is up to who wrote the file."""
    names: Iterator[str] = (file.schema.column(index).path for index in range(len(file.schema)))
    name = next(filter(is_bytes_column, names), None)
    if name is None:
        raise KeyError("there is no column for the bytes of media")
    return name


def is_bytes_column(name: str) -> bool:
    """Whether a column of a Parquet file of records, by its path, is that of the bytes of media."""
    return name.startswith(f"{MEDIA_COLUMN}.") and name.endswith(".bytes")
