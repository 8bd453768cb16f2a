"""What a conversion is asked to do and what it says it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from aria_finetune.data_formats.format import Answers, Settings, Take
from aria_finetune.errors import UserError

SHOWN_REJECTS = 5
"""How many rejects a message describes; all of them are in a file."""

Verification = Literal["none", "stat", "header", "decode"]
MediaPolicy = Literal["copy", "hardlink", "reference"]
Packing = Literal["jsonl", "parquet"]
EngineName = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """How to read a source, and what to make of it.

    `media_roots` replaces the folder of the source as the place where media lie. `companions` are files that belong to
    the source and do not lie beside it. `encoding` is that of text without a byte order mark. `converter` is a Python
    file with a format of the user's own.

    `verify` is how far media are looked into: `none` (not at all: they are taken as they are named), `stat` (the file is
    there, inside a root and not empty), `header` (and is an image, video or PDF within the limits), `decode` (and an image
    can be decoded, a video up to its last frame); sizes are measured from `header` on. `media` is whether files are
    copied into the data set, linked into it, or left where they are; they are copied if that is not said, and left
    where they are without a look.

    `evaluation` allows conversations without a last answer. `answers` is how answers to multiple-choice questions are
    written, `take` makes instruction data of preferences, `columns` says what the columns of a table hold.
    """

    format: str = "auto"
    media_roots: tuple[Path, ...] = ()
    max_rejects: int = 0
    verify: Verification = "header"
    max_pixels: int = 64_000_000
    evaluation: bool = False
    media: MediaPolicy | None = None
    pack: Packing = "jsonl"
    companions: tuple[Path, ...] = ()
    encoding: str | None = None
    converter: Path | None = None
    answers: Answers = "both"
    take: Take | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def media_policy(self) -> MediaPolicy:
        """What becomes of media.

        Raises:
            UserError: files are to be copied that are not looked for.
        """
        if self.media in {"copy", "hardlink"} and self.verify == "none":
            fix = "leave the files where they are with --media reference, or look for them with --verify stat"
            raise UserError(f"--media {self.media} needs the files, and --verify none does not look for them", fix=fix)
        return self.media or ("reference" if self.verify == "none" else "copy")

    @property
    def settings(self) -> Settings:
        """What converters are told of it."""
        return Settings(self.answers, self.take, dict(self.columns))

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON types."""
        named = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return named | {
            "media_roots": [str(root) for root in self.media_roots],
            "companions": [str(file) for file in self.companions],
        }


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

    def add(self, other: ConversionReport) -> None:
        """Take over the counts of another part of the conversion."""
        self.source_records += other.source_records
        self.written += other.written
        self.rejected += other.rejected
        self.reasons.update(other.reasons)
        self.repairs.update(other.repairs)
        self.formats.update(other.formats)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConversionReport:
        """Read what `to_dict` wrote."""
        counts = Counter(data["reasons"]), Counter(data["repairs"]), Counter(data["formats"])
        return cls(data["source_records"], data["written"], data["rejected"], *counts, data["seconds"])

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
