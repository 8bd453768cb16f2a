"""The rows of a run: read from their sources, planned, rejected with a reason, mixed by weight.

Knows records and plans. Knows nothing of the model; the order of rows depends on (seed, epoch) alone.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from aria_finetune.conversion import SHOWN_REJECTS, ConversionOptions, Reject, is_dataset, read_dataset, read_records
from aria_finetune.data.begun import BegunRows
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.nearness import shuffle_passes
from aria_finetune.data.rows import RowPlan, Viewing, plan_row
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Answers, Take
from aria_finetune.data_formats.record import Record
from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.media.inspection import Inspector
from aria_finetune.redaction import redact_values

_IN_ROW_GROUP = re.compile(r".+?\.parquet#\d+(?=\.\d+\.\d+)", re.DOTALL)
"""How the name of a medium begins that is packed in Parquet."""

POLICY_REASONS = ("too_long", "no_label")
"""Reasons that `data.too_long` and `data.loss_on` decide; they don't count against `data.max_rejects`."""


@dataclass(frozen=True)
class DataSource:
    """A converted folder or a raw source; its rows are seen `weight` times per epoch.

    The other fields are those of `ConversionOptions`, for a raw source.
    """

    path: Path
    format: str = "auto"
    media_roots: tuple[Path, ...] = ()
    weight: float = 1.0
    companions: tuple[Path, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    answers: Answers = "both"
    take: Take | None = None
    encoding: str | None = None
    converter: Path | None = None

    def options(self, *, decode: bool, max_pixels: int, evaluation: bool) -> ConversionOptions:
        """How the source is read where it is raw."""
        return ConversionOptions(
            format=self.format,
            media_roots=self.media_roots,
            verify="decode" if decode else "header",
            max_pixels=max_pixels,
            evaluation=evaluation,
            companions=self.companions,
            encoding=self.encoding,
            converter=self.converter,
            answers=self.answers,
            take=self.take,
            columns=self.columns,
        )


@dataclass
class RowSet:
    """Planned rows of several sources, one after the other; `spans` says which rows a source has."""

    plans: list[RowPlan] = field(default_factory=list)
    spans: list[range] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Rows, tokens, labels, images, videos and rejected rows of one pass over every row."""
        return {
            "rows": len(self.plans),
            "tokens": sum(plan.tokens for plan in self.plans),
            "labels": sum(plan.labels for plan in self.plans),
            "images": sum(plan.image_count for plan in self.plans),
            "videos": sum(plan.video_count for plan in self.plans),
            "rejected": len(self.rejects),
        }

    def describe(self) -> str:
        """The counts of what is used, in words."""
        counts = self.counts()
        return (
            f"{counts['rows']:,} rows, {counts['tokens']:,} tokens ({counts['labels']:,} in the loss), "
            f"{counts['images']:,} images, {counts['videos']:,} videos"
        )

    @property
    def has_pictures(self) -> bool:
        """Whether any row shows one."""
        return any(plan.sights for plan in self.plans)

    @property
    def groups(self) -> list[int | None]:
        """The row group in which the pictures of each row are packed, by a number; None where they are files."""
        numbers: dict[str, int] = {}
        return [_row_group(plan, numbers) for plan in self.plans]

    def order(self, seed: int) -> EpochOrder:
        """The order in which training sees the rows."""
        return EpochOrder(self.spans, self.weights, seed, self.groups)

    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason code."""
        return dict(sorted(Counter(reject.reason for reject in self.rejects).items()))


def load_rows(  # noqa: PLR0913 (settings of a recipe, each by its name)
    sources: Sequence[DataSource],
    viewing: Viewing,
    chat: ChatTokenizer,
    *,
    media_store: Path,
    max_rejects: int | None = 0,
    max_pixels: int = 64_000_000,
    generation: bool = False,
    decode_media: bool = False,
    begun: BegunRows | None = None,
    inspector: Inspector | None = None,
) -> RowSet:
    """Read and plan every row of `sources`.

    Args:
        sources: where the rows are.
        viewing: how they are shown.
        chat: renders and counts tokens.
        media_store: folder for media that a raw source holds inline (data URIs).
        max_rejects: how many records may be rejected, rows that are too long or without labels aside; None for any
            number.
        max_pixels: limit of one image.
        generation: plan prompts for answers to be generated.
        decode_media: decode the pictures of raw sources instead of only reading their headers.
        begun: rows of a run that goes on. One of them whose files were lost keeps its place, marked as lost.
        inspector: looks into media; one of its own if it is left out.

    Raises:
        TooManyRejects: more records were rejected than `max_rejects`.
        UserError: a source can't be read, a row is too long and `too_long` is `fail`, or no row is left.
    """
    rows = RowSet()
    with nullcontext(inspector) if inspector else closing(Inspector()) as looking:
        reading = _Reading(rows, viewing, chat, media_store, looking, begun, generation)
        for source in sources:
            options = source.options(decode=decode_media, max_pixels=max_pixels, evaluation=generation)
            start, rejected = len(rows.plans), len(rows.rejects)
            reading.read(source.path, options)
            rows.spans.append(range(start, len(rows.plans)))
            rows.weights.append(source.weight)
            if max_rejects is not None:
                check_rejects(rows.rejects, max_rejects)
            if start == len(rows.plans):
                raise UserError(
                    "no row is left" + _summary(rows.rejects[rejected:]),
                    where=str(source.path),
                    fix="the source is empty or every row of it was rejected",
                )
    return rows


@dataclass(frozen=True)
class _Reading:
    """What all sources of a run are read with; `rows` takes what comes of it."""

    rows: RowSet
    viewing: Viewing
    chat: ChatTokenizer
    media_store: Path
    inspector: Inspector
    begun: BegunRows | None
    generation: bool

    def read(self, path: Path, options: ConversionOptions) -> None:
        """Plan every row of a source."""
        for record in self._records(path, options):
            try:
                _check_pixels(record, options.max_pixels)
                plan = plan_row(record, self.viewing, self.chat, generation=self.generation, inspector=self.inspector)
            except RecordError as error:
                self._refuse_record(record, error)
            else:
                self.rows.plans.append(plan)

    def _records(self, path: Path, options: ConversionOptions) -> Iterator[Record]:
        if is_dataset(path):
            return read_dataset(path, inspector=self.inspector, media_store=self.media_store, on_reject=self._refuse)
        return read_records(
            path, options, on_reject=self._refuse, media_store=self.media_store, inspector=self.inspector
        )

    def _refuse_record(self, record: Record, error: RecordError) -> None:
        if error.reason == "too_long" and self.viewing.too_long == "fail":
            raise UserError(
                error.detail,
                where=f"{record.source.file}:{record.source.ordinal}",
                fix="raise data.max_tokens, or set data.too_long: reject",
            ) from error
        source = record.source
        self._refuse(Reject(source.file, source.ordinal, None, record.id, error.reason, error.detail))

    def _refuse(self, reject: Reject) -> None:
        lost = self.begun.lost(reject) if self.begun else None
        if lost is not None:
            self.rows.plans.append(lost)
        else:
            self.rows.rejects.append(reject)


def hold_out(rows: RowSet, fraction: float, seed: int) -> tuple[RowSet, RowSet]:
    """Split off `fraction` of every source's rows, at least one, chosen by `seed`: training and evaluation rows.

    Raises:
        UserError: a source has only one row.
    """
    kept, held = RowSet(rejects=rows.rejects), RowSet()
    for number, (span, weight) in enumerate(zip(rows.spans, rows.weights, strict=True)):
        if len(span) < 2:
            raise UserError("data.eval_fraction needs at least two rows in every source", fix="name data.eval instead")
        count = min(len(span) - 1, max(1, round(fraction * len(span))))
        chosen = set(random.Random(f"{seed}:hold out:{number}").sample(span, count))  # noqa: S311 (a seeded order)
        for part, wanted in ((kept, False), (held, True)):
            start = len(part.plans)
            part.plans += [rows.plans[row] for row in span if (row in chosen) is wanted]
            part.spans.append(range(start, len(part.plans)))
            part.weights.append(weight if part is kept else 1.0)
    return kept, held


def as_prompts(rows: RowSet, viewing: Viewing, chat: ChatTokenizer) -> RowSet:
    """The same rows planned as prompts, for answers to be generated."""
    with closing(Inspector()) as inspector:
        plans = [plan_row(plan.record, viewing, chat, generation=True, inspector=inspector) for plan in rows.plans]
    return RowSet(plans, rows.spans, rows.weights, rows.rejects)


def write_rejects(rejects: Sequence[Reject], path: Path) -> None:
    """One JSON object a line, as `convert` writes them."""
    lines = [json.dumps(redact_values(asdict(reject)), ensure_ascii=False) + "\n" for reject in rejects]
    path.write_text("".join(lines), "utf-8")


class EpochOrder:
    """Row numbers of one epoch: every source by its weight, exactly, in an order drawn from (seed, epoch).

    A weight of 2.25 gives each row twice and a quarter of the rows once more; which quarter moves on from epoch
    to epoch until every row has had its turn. Shares are rounded, to no less than one row.

    With `groups`, the row group of each row (None for one that can be read alone), rows of a group come near each other.
    """

    def __init__(
        self, spans: Sequence[range], weights: Sequence[float], seed: int, groups: Sequence[int | None] = ()
    ) -> None:
        self.groups = groups if any(group is not None for group in groups) else ()
        self.spans = list(spans)
        self.weights = list(weights)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(_share(span, weight) for span, weight in zip(self.spans, self.weights, strict=True))

    def __iter__(self) -> Iterator[int]:
        passes: list[list[list[int]]] = []
        for number, (span, weight) in enumerate(zip(self.spans, self.weights, strict=True)):
            again = self._rotating(number, span, _share(span, weight) - len(span) * int(weight))
            passes.append([*([list(span)] * int(weight)), again])
        draws = random.Random(f"{self.seed}:epoch:{self.epoch}")  # noqa: S311 (a seeded order)
        if self.groups:
            return iter(shuffle_passes(passes, self.groups, draws))
        rows = [row for source in passes for rows in source for row in rows]
        draws.shuffle(rows)
        return iter(rows)

    def _rotating(self, number: int, span: range, count: int) -> list[int]:
        """`count` different rows, going round a shuffled deck from where the last epoch left off."""
        if not count:
            return []
        deck = list(span)
        random.Random(f"{self.seed}:source:{number}").shuffle(deck)  # noqa: S311 (a seeded order)
        start = self.epoch * count
        return [deck[position % len(deck)] for position in range(start, start + count)]


def rows_of_updates(order: EpochOrder, updates: int, rows_per_update: int) -> list[int]:
    """Sorted numbers of the rows that the first `updates` optimizer steps come to; changes the epoch of `order`.

    The last step of an epoch takes what is left of its rows.
    """
    updates_per_epoch = math.ceil(len(order) / rows_per_update)
    every = sum(map(len, order.spans))
    rows: set[int] = set()
    for epoch in range(math.ceil(updates / updates_per_epoch)):
        order.set_epoch(epoch)
        rows.update(islice(order, (updates - epoch * updates_per_epoch) * rows_per_update))
        if len(rows) == every:
            break
    return sorted(rows)


def _row_group(plan: RowPlan, numbers: dict[str, int]) -> int | None:
    # A row that lost a file since the run began must not change the order of the others.
    names = [plan.lost.media] if plan.lost else [medium.name for medium in plan.record.media]
    found = next(filter(None, map(_IN_ROW_GROUP.match, names)), None)
    return numbers.setdefault(found[0], len(numbers)) if found else None


def _share(span: range, weight: float) -> int:
    return max(min(len(span), 1), int(len(span) * weight + 0.5))


def _check_pixels(record: Record, max_pixels: int) -> None:
    """The limit also holds for a data set that was converted under another."""
    for media in record.media:
        if media.kind == "image" and media.width * media.height > max_pixels:
            raise RecordError("media_too_large", f"{media.width} x {media.height} pixels, the limit is {max_pixels:,}")


def check_rejects(rejects: Sequence[Reject], max_rejects: int) -> None:
    """Refuse more rejected records than are allowed; those that follow from the recipe don't count.

    Raises:
        TooManyRejects: with the first of them and their reasons.
    """
    bad = [reject for reject in rejects if reject.reason not in POLICY_REASONS]
    if len(bad) > max_rejects:
        raise TooManyRejects(
            f"{len(bad)} record(s) were rejected, data.max_rejects allows {max_rejects}" + _summary(bad),
            fix="mend these records, or raise data.max_rejects",
        )


def _summary(rejects: Sequence[Reject]) -> str:
    lines = [f"\n  {reject.describe()}" for reject in rejects[:SHOWN_REJECTS]]
    more = len(rejects) - SHOWN_REJECTS
    return "".join(lines) + (f"\n  and {more} more" if more > 0 else "")
