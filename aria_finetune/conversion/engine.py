"""The one path from a source to records: find the format, convert, apply the rules, check and keep the media.

Every candidate comes out as an `Accepted` or as a `Reject`; nothing is dropped in silence. Where records go is
for the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from aria_finetune import __version__
from aria_finetune.conversion.media_check import CheckedMedia, MediaChecker
from aria_finetune.conversion.media_store import InPlaceStore, MediaStore
from aria_finetune.conversion.options import ConversionOptions, Reject
from aria_finetune.data_formats import registry, rules
from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Format
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.reading.sources import SourceItem
from aria_finetune.data_formats.record import Media, MediaReference, Record, Source
from aria_finetune.errors import MediaError, UserError

_SHOWN_ORIGIN = 120


@dataclass(frozen=True, slots=True)
class Accepted:
    """A record, and what was mended or noticed on its way."""

    record: Record
    repairs: tuple[str, ...]


Outcome = Accepted | Reject


def read_records(
    source: Path, options: ConversionOptions, *, on_reject: Callable[[Reject], None], media_store: Path
) -> Iterator[Record]:
    """The records of a raw source with their media left in place; paths are absolute and not hashed.

    Media written into the source as data URIs are kept in the folder `media_store`. `options.max_rejects` is not
    looked at: `on_reject` gets every reject as it comes.

    Raises:
        UserError: the source can't be read, or no format or more than one fits.
    """
    for outcomes in outcomes_of(source, options, InPlaceStore(media_store)):
        for outcome in outcomes:
            if isinstance(outcome, Reject):
                on_reject(outcome)
            else:
                yield outcome.record


def outcomes_of(source: Path, options: ConversionOptions, store: MediaStore) -> Iterator[list[Outcome]]:
    """What became of each source record, in order: one outcome per candidate it holds, at least one.

    Raises:
        UserError: as `read_records`.
    """
    with problems_told(source):
        file = sources.locate(source)
        items, form = _with_format(sources.read_source(file), options.format)
        checker = MediaChecker(options.media_roots or (file.parent,), options.verify, options.max_pixels)
        conversion = _Conversion(form, _printable(file.name), checker, store, evaluation=options.evaluation)
        for item in items:
            yield conversion.outcomes(item)


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


def _with_format(items: Iterator[SourceItem], name: str) -> tuple[Iterator[SourceItem], Format]:
    if name != "auto":
        return items, registry.get(name)
    head = list(islice(items, registry.DETECTION_RECORDS))
    bad = [item.record for item in head if isinstance(item.record, RecordError)]
    if len(bad) == len(head):
        fix = "give JSON Lines or a JSON array, in a format of `aria-finetune formats`"
        raise FormatError(f"none of its first {len(head)} records can be parsed; the first: {bad[0]}", fix=fix)
    form = registry.detect([item.record for item in head if not isinstance(item.record, RecordError)])
    return chain(head, items), form


@dataclass(frozen=True, slots=True)
class _Conversion:
    form: Format
    file: str
    checker: MediaChecker
    store: MediaStore
    evaluation: bool

    def outcomes(self, item: SourceItem) -> list[Outcome]:
        candidates = _candidates(self.form, item.record)
        numbered = enumerate(candidates) if len(candidates) > 1 else [(None, candidates[0])]
        return [self._outcome(candidate, item.ordinal, sub) for sub, candidate in numbered]

    def _outcome(self, candidate: Candidate, ordinal: int, sub: int | None) -> Outcome:
        name = f"{self.form.name}:{self.file}:{ordinal}" + ("" if sub is None else f".{sub}")
        try:
            if isinstance(candidate, RecordError):
                raise candidate
            draft = rules.checked(candidate, evaluation=self.evaluation)
            media = self._media(draft.media)
        except (RecordError, MediaError) as error:
            return Reject(self.file, ordinal, sub, name, error.reason, error.detail)
        record = Record(
            id=name,
            messages=draft.messages,
            media=media,
            references=draft.references,
            tools=draft.tools,
            meta=fields.json_text(draft.meta),
            source=Source(self.form.name, self.file, ordinal, __version__),
        )
        return Accepted(record, tuple(dict.fromkeys(draft.repairs)))

    def _media(self, references: Sequence[MediaReference]) -> tuple[Media, ...]:
        # All are looked at before the first is kept, so that a rejected record leaves no file behind.
        checked = [self.checker.check(reference) for reference in references]
        return tuple(self._medium(*pair) for pair in zip(references, checked, strict=True))

    def _medium(self, reference: MediaReference, checked: CheckedMedia) -> Media:
        kept = self.store.keep(checked)
        return Media(
            kind=reference.kind,
            path=kept.path,
            sha256=kept.sha256,
            mime=checked.mime,
            width=checked.width,
            height=checked.height,
            frames=checked.frames,
            duration=checked.duration,
            start=reference.start,
            end=reference.end,
            num_frames=reference.num_frames,
            page=reference.page,
            origin=_origin(reference.reference),
        )


def _candidates(form: Format, record: object | RecordError) -> list[Candidate]:
    if isinstance(record, RecordError):
        return [record]
    candidates: list[Candidate] = []
    try:
        candidates.extend(form.convert(record, PLAIN))
    except RecordError as error:
        candidates.append(error)
    return candidates or [RecordError("bad_schema", "the record holds no conversation")]


def _origin(reference: str) -> str:
    if reference[:5].lower() != "data:" or len(reference) <= _SHOWN_ORIGIN:
        return reference
    return f"{reference[: _SHOWN_ORIGIN - 3]}..."


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
