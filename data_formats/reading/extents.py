"""Parts of a file that are read apart from each other, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes `start` to `stop` of a text, or as many row groups of a Parquet file; None stands for its end.

    `mark` are bytes with which a record of a JSON list ends and the next begins; empty where they are not known.
    """

    start: int = 0
    stop: int | None = None
    mark: bytes = b""


@dataclass(frozen=True, slots=True)
class Tally:
    """Records and line feeds in an extent."""

    records: int = 0
    lines: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.records + other.records, self.lines + other.lines)


WHOLE = Extent()
"""A file in one piece."""
