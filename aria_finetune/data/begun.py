"""The rows that a run began with: kept beside it, so that one whose file is lost later still has its place.

Knows plans and rejects, not where a run lies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aria_finetune.conversion import Reject
from aria_finetune.data.rows import Loss, RowPlan
from aria_finetune.data_formats.record import Record, Source
from aria_finetune.provenance import fingerprint_objects

MEDIA_REASONS = ("media_missing", "media_unsafe_path", "media_unreadable", "media_too_large", "media_too_small",
                 "no_video_stream", "zero_frames")  # fmt: skip
"""Reasons for which a record that was sound may be rejected later, through its files alone."""


@dataclass(frozen=True, slots=True)
class BegunRow:
    """A row by its place and its id, with its files; `sha256` is over all that the model is shown of it."""

    file: str
    ordinal: int
    id: str
    media: list[str]
    sha256: str


class BegunRows:
    """Rows by place, to be taken in the order of reading."""

    def __init__(self, rows: Iterable[BegunRow]) -> None:
        self._rows: dict[tuple[str, int, str], list[BegunRow]] = {}
        for row in rows:
            self._rows.setdefault((row.file, row.ordinal, row.id), []).append(row)

    def lost(self, reject: Reject) -> RowPlan | None:
        """The row that a record had before its files were lost; None if it had none, or was rejected otherwise."""
        rows = self._rows.get((reject.file, reject.ordinal, reject.id), [])
        if reject.reason not in MEDIA_REASONS or not rows:
            return None
        record = Record(
            id=reject.id,
            messages=(),
            media=(),
            references=(),
            tools=None,
            meta="{}",
            source=Source(format="", file=reject.file, ordinal=reject.ordinal, converter_version=""),
        )
        return RowPlan(
            record, (), (), 0, 0, Loss(reject.reason, reject.detail, ", ".join(rows[0].media), rows[0].sha256)
        )


def fingerprint_row(plan: RowPlan) -> str:
    """SHA-256 over what the model is shown of a row, where known the hashes of its media included."""
    if plan.lost is not None:
        return plan.lost.sha256
    shown = (plan.record.id, plan.turns, plan.sights, [media.sha256 for media in plan.record.media])
    return fingerprint_objects([shown])


def write_begun_rows(plans: Sequence[RowPlan], path: Path) -> None:
    """One JSON object a line, in the order of the run's row numbers."""
    with path.open("w", encoding="utf-8") as file:
        for plan in plans:
            source = plan.record.source
            media = [medium.name for medium in plan.record.media]
            row = BegunRow(source.file, source.ordinal, plan.record.id, media, fingerprint_row(plan))
            file.write(json.dumps(asdict(row)) + "\n")


def read_begun_rows(path: Path) -> BegunRows:
    """What `write_begun_rows` wrote; no rows where the file is absent or damaged."""
    try:
        return BegunRows(BegunRow(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError, TypeError):
        return BegunRows(())
