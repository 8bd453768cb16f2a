"""From files that a person names to records that can be planned: images, videos and PDFs, then words.

Files are looked into as `convert` does, in a process that can be killed, and stay where they are. Knows records, not models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aria_finetune import __version__
from aria_finetune.conversion.media_check import MediaChecker
from aria_finetune.conversion.options import Verification
from aria_finetune.data_formats import rules
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Media, MediaReference, Message, Part, PartType, Record, Source
from aria_finetune.errors import MediaError
from aria_finetune.media.inspection import Inspector

FORMAT = "prompts"
"""What records made here say that they come from."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A file that stands in a message."""

    kind: PartType
    path: str


Said = str | Attached


class Attacher:
    """Looks at files; those of a prompt file must lie below `roots`, those that a person names may be anywhere.

    Args:
        inspector: looks into them.
        max_pixels: limit of an image.
        roots: folders that relative names start from, and that none may lead out of; None for names that stand for themselves.
        verify: how far files below roots are looked into.
    """

    def __init__(
        self,
        inspector: Inspector,
        max_pixels: int,
        roots: Sequence[Path] | None = None,
        verify: Verification = "header",
    ) -> None:
        self._inspector, self._max_pixels = inspector, max_pixels
        self._below = None if roots is None else MediaChecker(roots, verify, max_pixels, inspector)

    def medium(self, attached: Attached) -> Media:
        """The medium, measured.

        Raises:
            MediaError: it is missing, damaged, beyond the limits, or outside the roots.
        """
        checker, name = self._below, attached.path
        if checker is None:
            try:
                path = Path(attached.path).expanduser().resolve()
            except (OSError, RuntimeError, ValueError) as error:
                raise MediaError("media_unreadable", f"{attached.path!r:.120}: {error}") from error
            checker, name = MediaChecker([path.parent], "header", self._max_pixels, self._inspector), path.name
        checked = checker.check(MediaReference(attached.kind, name))
        return Media(
            attached.kind,
            str(checked.content),
            "",
            checked.mime,
            checked.width,
            checked.height,
            checked.frames,
            checked.duration,
            origin=attached.path,
        )


def message(
    text: str, images: Iterable[str] = (), videos: Iterable[str] = (), documents: Iterable[str] = ()
) -> list[Said]:
    """What a prompt says: its pictures first, as in the data that Aria was trained on, then its words."""
    files = [("image", images), ("video", videos), ("document", documents)]
    attached = [Attached(kind, path) for kind, paths in files for path in paths]  # type: ignore[arg-type]
    return [*attached, *([text] if text else [])]


def record_of(
    name: str, turns: Sequence[tuple[str, Sequence[Said]]], attacher: Attacher, *, file: str = "", ordinal: int = 0
) -> Record:
    """The record of a conversation, (role, what is said) by turn; a file that is shown twice is one medium.

    Args:
        name: its id.
        turns: in order, a system turn first if there is one.
        attacher: looks at its files.
        file: where it comes from.
        ordinal: its place there.

    Raises:
        RecordError: the last turn says nothing, or a text holds what JSON can't carry.
        MediaError: a file can't be used.
    """
    if not any(not isinstance(said, str) or said.strip() for said in turns[-1][1]):
        raise RecordError("bad_schema", "it says nothing")
    written = [
        Turn(role, tuple(said if isinstance(said, str) else MediaReference(said.kind, said.path) for said in content))  # type: ignore[arg-type]
        for role, content in turns
    ]
    checked = rules.checked(draft(written), evaluation=True)
    media = tuple(attacher.medium(Attached(reference.kind, reference.reference)) for reference in checked.media)
    source = Source(FORMAT, file, ordinal, __version__)
    return Record(name, checked.messages, media, (), None, "{}", source)


def answered(record: Record, text: str) -> Record:
    """The same with an answer behind it."""
    return replace(record, messages=(*record.messages, Message("assistant", (Part("text", text),))))
