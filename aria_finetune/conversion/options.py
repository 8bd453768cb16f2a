"""What a conversion is asked to do and what it says it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

SHOWN_REJECTS = 5
"""How many rejects a message describes; all of them are in a file."""

Verification = Literal["none", "stat", "header", "decode"]


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """How to read a source.

    `media_roots` replaces the folder of the source as the place where media lie. `verify` is how far media are
    looked into: `none` (the file is there and inside a root), `stat` (and is not empty), `header` (and is an image
    or video within the limits), `decode` (and an image can be decoded, a video up to its last frame);
    sizes are measured from `header` on. `evaluation` allows conversations without a last answer.
    """

    format: str = "auto"
    media_roots: tuple[Path, ...] = ()
    max_rejects: int = 0
    verify: Verification = "header"
    max_pixels: int = 64_000_000
    evaluation: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON types."""
        return asdict(self) | {"media_roots": [str(root) for root in self.media_roots]}


@dataclass(frozen=True, slots=True)
class Reject:
    """A candidate that was not used: one line of `rejects.jsonl`.

    `ordinal` counts the records of `file` from 0, `sub` the candidates of one record where it has several.
    """

    file: str
    ordinal: int
    sub: int | None
    id: str
    reason: str
    detail: str

    def describe(self) -> str:
        """Place, reason and detail in one line for people."""
        return f"{self.file}:{self.ordinal}: {self.reason}: {self.detail}"


@dataclass
class ConversionReport:
    """The counts of a conversion; `read` (candidates) is always `written` + `rejected`.

    `reasons` counts rejects by code, `repairs` records by what was mended or noticed, `formats` candidates.
    """

    source_records: int = 0
    written: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def read(self) -> int:
        """Candidates seen: one per conversation of a source record, one for a record that can't be parsed."""
        return self.written + self.rejected

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types, counts by name in alphabetical order."""
        return {
            "source_records": self.source_records,
            "read": self.read,
            "written": self.written,
            "rejected": self.rejected,
            "reasons": dict(sorted(self.reasons.items())),
            "repairs": dict(sorted(self.repairs.items())),
            "formats": dict(sorted(self.formats.items())),
            "seconds": round(self.seconds, 3),
        }
