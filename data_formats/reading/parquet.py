"""Parquet: rows as objects, cells of bytes as bytes; cut between row groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.reading.contents import Contents
from aria_finetune.data_formats.reading.extents import Extent, Tally

BATCH_ROWS = 64
"""Rows held as Python objects at a time: each may hold several pictures."""


def cut(file: Path, contents: Contents, size: int) -> list[Extent]:  # noqa: ARG001
    """Cut a file into extents of whole row groups, each of about `size` bytes or of one group."""
    with _opened(file) as table:
        ends, held = [], 0
        for group in range(table.metadata.num_row_groups):
            held += table.metadata.row_group(group).total_byte_size
            if held >= size:
                ends.append(group + 1)
                held = 0
        if table.metadata.num_rows == 0:
            raise FormatError("there is no record in it", fix="check that it is the file you mean; it has no row")
        ends = sorted({*ends, table.metadata.num_row_groups})
    return [Extent(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def count(file: Path, contents: Contents, extent: Extent) -> Tally:  # noqa: ARG001
    """Rows in an extent, as the file's metadata have it."""
    with _opened(file) as table:
        return Tally(sum(table.metadata.row_group(group).num_rows for group in _groups(table, extent)))


def read(file: Path, contents: Contents, extent: Extent, before: Tally) -> Iterator[object]:  # noqa: ARG001
    """The rows of an extent in order.

    Raises:
        FormatError: the file is damaged.
    """
    with _opened(file) as table:
        groups = _groups(table, extent)
        left = sum(table.metadata.row_group(group).num_rows for group in groups)
        for batch in table.iter_batches(BATCH_ROWS, row_groups=list(groups)):
            left -= batch.num_rows
            yield from batch.to_pylist()
        if left:
            raise ValueError(f"{left} of its rows are not there")


def _groups(table: Any, extent: Extent) -> range:
    return range(extent.start, table.metadata.num_row_groups if extent.stop is None else extent.stop)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    import pyarrow as pa  # noqa: PLC0415 (slow to import, and few sources are Parquet)
    from pyarrow import parquet  # noqa: PLC0415

    try:
        with parquet.ParquetFile(file) as table:
            groups = range(table.metadata.num_row_groups)
            if sum(table.metadata.row_group(group).num_rows for group in groups) != table.metadata.num_rows:
                raise ValueError("its row groups hold more or fewer rows than it says")  # noqa: TRY301 (told below)
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise FormatError(f"it has two columns {twice!r:.60}", fix="give every column its own name")
            yield table
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the content
        raise FormatError(f"the Parquet file is damaged: {error!s:.200}", fix="get the file again") from error
