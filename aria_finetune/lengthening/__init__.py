"""`lengthen`: the training rows of a recipe joined into rows of up to `data.max_tokens` tokens, as a converted data set.

    lengthen(recipe, Path("captions-64k"), console)

Rows are read and planned as training does it, so that tokens are those of the recipe's own tokenizer and of its way to show pictures.
Every row is a part of one long record, or is told as left over.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from aria_finetune.conversion import Reject
from aria_finetune.conversion.derived import derived_set, not_used
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.rows import plan_row
from aria_finetune.data_formats.documents.pdf_folder import TEXT_PROMPT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Record
from aria_finetune.errors import MediaError, UserError
from aria_finetune.lengthening.joining import FORM
from aria_finetune.lengthening.parts import FAMILIES, JoinedPart, pages_of, part_of
from aria_finetune.lengthening.room import Joiner
from aria_finetune.media.documents import DocumentLimits
from aria_finetune.media.inspection import Inspector
from aria_finetune.model.hub_layout import open_settings
from aria_finetune.model.settings import load_tokenizer
from aria_finetune.recipe import Recipe
from aria_finetune.sources import RowReader, build_viewing

NO_LIMIT = 1 << 40
"""Tokens of a row as it is read: a document that is too long may have pages that are not."""


def lengthen(recipe: Recipe, output: Path, console: Console) -> dict[str, Any]:
    """Write the long data set and say what became of every row; returns what `report.json` says.

    Args:
        recipe: its `data.train` is what is joined, each row once whatever the weights are; `data.max_tokens`, `image_size`,
            `split_images`, `num_frames` and `timestamps` say what has room, `train.seed` the order.
        output: a folder, which must not exist or be empty.
        console: where the counts go.

    Raises:
        UserError: rows can't be read, none can be joined, or the output is in use.
    """
    settings = open_settings(recipe.model.path, recipe.model.revision)
    chat, viewing = ChatTokenizer(load_tokenizer(settings)), build_viewing(recipe, settings)
    exact, whole = replace(viewing, too_long="reject"), replace(viewing, max_tokens=NO_LIMIT)
    chosen = {"seed": recipe.train.seed, "data": recipe.dump()["data"]}
    with (
        tempfile.TemporaryDirectory() as store,
        closing(Inspector(recipe.data.media_timeout)) as inspector,
        derived_set(output, FORM, chosen) as made,
    ):
        rows = RowReader(recipe, whole, chat, Path(store)).read(recipe.data.train)
        parts, alone = sort_out((plan.record for plan in rows.plans), inspector)
        joiner = Joiner(
            lambda record: plan_row(record, exact, chat, inspector=inspector),
            chat,
            viewing.max_tokens,
            viewing.num_frames,
        )
        for group in groups(parts, recipe.train.seed):
            for record in joiner.records(group):
                made.add(record)
        if not joiner.tokens:
            raise UserError("no row can be a part of a longer one", where=str(recipe.file), fix=_joinable(alone))
        made.rejects = [*rows.rejects, *alone, *joiner.left_over]
        made.report = describe(joiner, len(rows.plans), made.rejects, len(rows.rejects))
    _show(made.report, output, console)
    return made.report


def sort_out(records: Iterable[Record], inspector: Inspector) -> tuple[list[JoinedPart], list[Reject]]:
    """Parts of longer records, and the lines of records that can't be any; the inspector reads the text of pages."""
    parts: list[JoinedPart] = []
    alone: list[Reject] = []
    for record in records:
        try:
            parts += _parts_of(record, inspector)
        except RecordError as error:
            alone.append(not_used(record, error))
    return parts, alone


def _parts_of(record: Record, inspector: Inspector) -> list[JoinedPart]:
    part = part_of(record)
    if part.family != "document" or part.question != TEXT_PROMPT:
        return [part]
    try:
        return pages_of(part, inspector.page_texts(Path(part.medium.path or ""), DocumentLimits()))
    except MediaError as error:
        raise RecordError(error.reason, error.detail) from error


def groups(parts: Sequence[JoinedPart], seed: int) -> Iterator[list[JoinedPart]]:
    """Parts that may come together, in the order in which they do: pages of one document, or all of a family, shuffled."""
    for family in FAMILIES:
        alike = [part for part in parts if part.family == family]
        if family == "page":
            for document in dict.fromkeys(part.medium.name for part in alike):
                pages = [part for part in alike if part.medium.name == document]
                yield sorted(pages, key=lambda part: part.medium.page or 0)
        elif alike:
            random.Random(f"{seed}:{FORM}:{family}").shuffle(alike)  # noqa: S311 (a seeded order)
            yield alike


def describe(joiner: Joiner, planned: int, lines: Sequence[Reject], rejected: int) -> dict[str, Any]:
    """The counts: `read` is `used` + `left_over` + `rejected`.

    Args:
        joiner: what it has joined.
        planned: rows that could be shown.
        lines: of all that was not used.
        rejected: rows that could not be shown.
    """
    used = len(joiner.used)
    return {
        "read": planned + rejected,
        "used": used,
        "left_over": planned - used,
        "rejected": rejected,
        "written": len(joiner.tokens),
        "parts": dict(sorted(joiner.parts.items())),
        "tokens": {"least": min(joiner.tokens), "most": max(joiner.tokens), "all": sum(joiner.tokens)},
        "reasons": dict(sorted(Counter(line.reason for line in lines).items())),
    }


def _show(report: dict[str, Any], output: Path, console: Console) -> None:
    tokens = report["tokens"]
    console.print(
        f"{report['read']:,} rows read, {report['used']:,} joined into {report['written']:,} of {tokens['least']:,} to "
        f"{tokens['most']:,} tokens, {report['left_over']:,} left over, {report['rejected']:,} rejected; "
        f"the data set is in {output}/",
        highlight=False,
    )
    for reason, count in report["reasons"].items():
        console.print(f"  not used: {count:,} {reason}", highlight=False)


def _joinable(alone: Sequence[Reject]) -> str:
    first = f", and {alone[0].file}:{alone[0].ordinal} is not: {alone[0].detail}" if alone else ""
    return f"parts are records of one question about one image, video or document{first}"
