"""From a value in a source to records: convert, apply the rules, check and keep the media.

Every candidate comes out as an `Accepted` or as a `Reject`; nothing is dropped in silence. Where records go is
for the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aria_finetune import __version__
from aria_finetune.conversion.media_check import CheckedMedia, MediaChecker
from aria_finetune.conversion.media_store import InPlaceStore, MediaStore
from aria_finetune.conversion.options import ConversionOptions, Reject
from aria_finetune.conversion.plan import PlannedFile, find_files, read_context, records_of
from aria_finetune.data_formats import rules
from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.format import Candidate, Context, Format
from aria_finetune.data_formats.reading.extents import WHOLE, Extent, Tally
from aria_finetune.data_formats.record import Media, MediaReference, Record, Source
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.inspection import Inspector
from aria_finetune.media.paths import resolve_media

BESIDE_BYTES = 64 << 20
"""Largest file that a record may name to be read as a whole: subtitles, transcripts."""

_SHOWN_ORIGIN = 120


@dataclass(slots=True)
class Accepted:
    """A record, and what was mended or noticed on its way."""

    record: Record
    repairs: tuple[str, ...]


Outcome = Accepted | Reject


def read_records(
    source: Path,
    options: ConversionOptions,
    *,
    on_reject: Callable[[Reject], None],
    media_store: Path,
    inspector: Inspector | None = None,
) -> Iterator[Record]:
    """The records of a raw source with their media left in place; paths are absolute and not hashed.

    Media that lie in the source itself are kept in the folder `media_store`. `options.max_rejects` is not looked at:
    `on_reject` gets every reject as it comes. Media are looked into by `inspector`, or by one for each file.

    Raises:
        UserError: the source can't be read, or no format or more than one fits.
    """
    with problems_told(source):
        form, files = find_files(source, options)
        for file in files:
            with FileConverter(file, form, options, InPlaceStore(media_store), inspector) as converter:
                for outcomes in converter.outcomes():
                    for outcome in outcomes:
                        if isinstance(outcome, Reject):
                            on_reject(outcome)
                        else:
                            yield outcome.record


@contextmanager
def problems_told(place: Path) -> Iterator[None]:
    """Tell a source that can't be read, and a disk that does not work, as errors that the user can mend."""
    try:
        yield
    except FormatError as error:
        raise UserError(error.message, where=error.where or str(place), fix=error.fix) from error
    except OSError as error:
        fix = "check permissions and free space on the disk"
        raise UserError(error.strerror or str(error), where=str(error.filename or place), fix=fix) from error


class FileConverter:
    """Converts the records of one file of a source; holds the tables of its companions."""

    def __init__(
        self,
        file: PlannedFile,
        form: Format,
        options: ConversionOptions,
        store: MediaStore,
        inspector: Inspector | None = None,
    ) -> None:
        self._file = file
        self._form = form
        self._checker = MediaChecker(file.roots, options.verify, options.max_pixels, inspector)
        self._store = store
        self._evaluation = options.evaluation
        self._name = _printable(file.source.name)
        self._context = read_context(file, form, options, self._beside)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._checker.close()

    def outcomes(self, extent: Extent = WHOLE, before: Tally = Tally()) -> Iterator[list[Outcome]]:  # noqa: B008 (frozen)
        """What became of each record of an extent, in order: one outcome per candidate it holds, at least one.

        Raises:
            FormatError: the file can't be read.
            WrongGuess: a JSON list has to be read as a whole.
        """
        values = records_of(self._file, extent, before, self._form, self._context)
        if self._file.source.contents.kind == "pdf_folder":
            values = map(self._with_text, values)
        for ordinal, value in enumerate(values, before.records):
            candidates = _candidates(self._form, value, self._context)
            if len(candidates) == 1:
                yield [self._outcome(candidates[0], ordinal, None)]
            else:
                yield [self._outcome(candidate, ordinal, sub) for sub, candidate in enumerate(candidates)]

    def _with_text(self, value: object) -> object:
        """A PDF of a folder with its text, which is what there is to learn of it."""
        if not isinstance(value, dict):
            return value
        try:
            return {**value, "text": self._checker.document_text(value["document"])}
        except MediaError as error:
            return RecordError(error.reason, error.detail)

    def _outcome(self, candidate: Candidate, ordinal: int, sub: int | None) -> Outcome:
        name = f"{self._form.name}:{self._name}:{ordinal}" + ("" if sub is None else f".{sub}")
        try:
            if isinstance(candidate, RecordError):
                raise candidate
            draft = rules.checked(candidate, evaluation=self._evaluation)
            media = self._media(draft.media) if draft.media else ()
        except (RecordError, MediaError) as error:
            return Reject(self._name, ordinal, sub, name, error.reason, error.detail)
        record = Record(
            name,
            draft.messages,
            media,
            draft.references,
            draft.tools,
            fields.compact_json(draft.meta) if draft.meta else "{}",
            Source(self._form.name, self._name, ordinal, __version__),
        )
        repairs = (*draft.repairs, *self._file.notices)
        return Accepted(record, tuple(dict.fromkeys(repairs)) if repairs else ())

    def _media(self, references: Sequence[MediaReference]) -> tuple[Media, ...]:
        # All are looked at before the first is kept, so that a rejected record leaves no file behind.
        checked = [self._checker.check(reference) for reference in references]
        return tuple(self._medium(*pair) for pair in zip(references, checked, strict=True))

    def _medium(self, reference: MediaReference, checked: CheckedMedia) -> Media:
        kept = self._store.keep(checked)
        return Media(
            reference.kind,
            kept.path,
            kept.sha256,
            checked.mime,
            checked.width,
            checked.height,
            checked.frames,
            checked.duration,
            reference.start,
            reference.end,
            reference.num_frames,
            reference.page,
            _origin(reference.reference),
        )

    def _beside(self, name: str) -> bytes:
        try:
            path = resolve_media(name, self._file.roots)
            if path.stat().st_size > BESIDE_BYTES:
                raise RecordError("media_too_large", f"{name!r:.120} is larger than {BESIDE_BYTES >> 20} MiB")
            return path.read_bytes()
        except MediaError as error:
            raise RecordError(error.reason, error.detail) from error


def _candidates(form: Format, record: object, context: Context) -> list[Candidate]:
    if isinstance(record, RecordError):
        return [record]
    candidates: list[Candidate] = []
    try:
        candidates.extend(form.convert(record, context))
    except RecordError as error:
        candidates.append(error)
    return candidates or [RecordError("bad_schema", "the record holds no conversation")]


def _origin(reference: str) -> str:
    if reference[:5].lower() != "data:" or len(reference) <= _SHOWN_ORIGIN:
        return reference
    return f"{reference[: _SHOWN_ORIGIN - 3]}..."


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
