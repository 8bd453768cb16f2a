"""Show what the model will see of a recipe's rows, before anyone pays for a run: in the terminal, or as a page.

Rows are planned and collated as training does it; no weight is loaded. The page of verbs: how rows are taken apart,
checked and drawn is for `viewing`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from aria_finetune.conversion import SHOWN_REJECTS
from aria_finetune.data.collation import BadRow
from aria_finetune.data.dataset import RowSet, check_rejects
from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.material import Material, build_collator, prepare
from aria_finetune.recipe import Recipe
from aria_finetune.sources import build_viewing
from aria_finetune.staging import replace_text
from aria_finetune.summary import show_rows
from aria_finetune.viewing import page, terminal
from aria_finetune.viewing.batches import rows_of
from aria_finetune.viewing.drawing import DrawnRow, draw_row
from aria_finetune.viewing.pieces import visible
from aria_finetune.viewing.rows import Place, ShownRow, show

Split = Literal["train", "eval"]
TERMINAL_ROWS, PAGE_ROWS = 3, 20
"""How many are shown where nobody says it."""


@dataclass(frozen=True)
class InspectionOptions:
    """Which rows: the first `rows` of a `split`; on the page `html` if it is given, else in the terminal."""

    rows: int | None = None
    html: Path | None = None
    split: Split = "train"

    @property
    def wanted(self) -> int:
        """How many rows to show."""
        return self.rows if self.rows is not None else PAGE_ROWS if self.html else TERMINAL_ROWS


def inspect(recipe: Recipe, console: Console, options: InspectionOptions) -> None:
    """Show the first rows that training sees, each checked, and the rejected ones with their reasons.

    Raises:
        UserError: what training would refuse with, raised when all is shown: a row that is not as it must be, too many
            rejected records, media that can't be read with `data.on_bad_media` of `fail`. At once: a recipe, a
            checkpoint or a source that can't be read, no evaluation data for a `split` of `eval`, or no place for the
            page.
    """
    if options.html is not None:
        check_page(options.html)
    with tempfile.TemporaryDirectory() as store:
        material = prepare(recipe, Path(store), any_rejects=True)
        show_rows(material, console)
        selection = select(recipe, material, options)
        findings = Findings()
        rows = findings.of(shown_rows(recipe, material, selection))
        if options.html is None:
            print_rows(material, selection, rows, console)
        else:
            drawn = [draw_row(row) for row in rows]
    refusal = find_refusal(recipe, material, findings)
    if options.html is not None:
        write_page(recipe, material, selection, drawn, options.html, refusal)
        console.print(Text(f"{selection.describe()}: see {options.html}"), soft_wrap=True)
    if refusal is not None:
        raise refusal


@dataclass(frozen=True)
class Selection:
    """The rows to show: their numbers in order, of how many, and what they are. `first` is the split's first row."""

    chosen: Sequence[int]
    total: int
    split: Split
    rows: RowSet
    sources: Sequence[str]
    first: int
    batch_size: int

    def describe(self) -> str:
        """Which rows, of how many."""
        what = "rows of epoch 0, in the order of training" if self.split == "train" else "evaluation rows, in order"
        if not self.chosen:
            return f"none of {self.total:,} {what}"
        return (
            f"{'all' if len(self.chosen) == self.total else f'the first {len(self.chosen):,} of'} {self.total:,} {what}"
        )

    def place(self, number: int, material: Material) -> Place:
        """Of the row that is shown as `number`, from 0."""
        row = self.chosen[number]
        source = next(index for index, span in enumerate(self.rows.spans) if row - self.first in span)
        record = material.plans[row].record
        where = f"{record.source.file}:{record.source.ordinal}"
        weight = self.rows.weights[source] if self.split == "train" else None
        return Place(number + 1, self.total, where, record.id, self.sources[source], weight)


def select(recipe: Recipe, material: Material, options: InspectionOptions) -> Selection:
    """The first rows of a split: in the order in which training sees them in epoch 0, or evaluation.

    Raises:
        UserError: the recipe names no evaluation data, and rows of it are wanted.
    """
    train, data = material.train_rows, recipe.data
    names = [section.path for section in data.train]
    if options.split == "train":
        order = train.order(recipe.train.seed)
        chosen = list(islice(order, options.wanted))
        return Selection(chosen, len(order), "train", train, names, 0, recipe.train.per_device_train_batch_size)
    if not data.has_eval:
        raise UserError(
            "the recipe names no evaluation data", where=str(recipe.file), fix="add data.eval, or data.eval_fraction"
        )
    held, first = material.eval_rows, len(train.plans)
    names = [section.path for section in data.eval] or names
    chosen = list(range(first, first + min(options.wanted, len(held.plans))))
    return Selection(chosen, len(held.plans), "eval", held, names, first, recipe.train.per_device_eval_batch_size)


def shown_rows(recipe: Recipe, material: Material, selection: Selection) -> Iterator[ShownRow]:
    """Collate the selected rows in the batches of a run, and take these apart."""
    collator = build_collator(recipe, material, on_bad_media="skip")
    vision_tokens = build_viewing(recipe, material.checkpoint).vision_tokens
    for start in range(0, len(selection.chosen), selection.batch_size):
        asked = selection.chosen[start : start + selection.batch_size]
        batch = collator([{"row": row} for row in asked])
        for number, seen in enumerate(rows_of(batch, asked, material.plans), start):
            place = selection.place(number, material)
            yield show(seen, material.plans[seen.row], place, material.chat, vision_tokens)


@dataclass
class Findings:
    """What was wrong with the rows that went by."""

    faults: list[tuple[Place, str]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def of(self, rows: Iterator[ShownRow]) -> Iterator[ShownRow]:
        """The same rows, looked at as they go by."""
        for row in rows:
            self.faults += [(row.place, fault) for fault in row.faults]
            self.bad += [row.bad] if row.bad else []
            yield row


def find_refusal(recipe: Recipe, material: Material, findings: Findings) -> UserError | None:
    """Why training must not begin, or would not begin or go on, with what was seen."""
    if findings.faults:
        return _faulty(findings.faults)
    try:
        for rows in (material.train_rows, material.eval_rows):
            check_rejects(rows.rejects, recipe.data.max_rejects)
    except TooManyRejects as error:
        return error
    if findings.bad and recipe.data.on_bad_media == "fail":
        return findings.bad[0].refusal()
    return None


def _faulty(faults: Sequence[tuple[Place, str]]) -> UserError:
    lines = [f"\n  {visible(place.id)}: {fault}" for place, fault in faults[:SHOWN_REJECTS]]
    more = f"\n  and {len(faults) - SHOWN_REJECTS} more" if len(faults) > SHOWN_REJECTS else ""
    return UserError(
        "this must not be trained on:" + "".join(lines) + more,
        where=faults[0][0].where,
        fix="don't train with this: use the tokenizer files of rhymes-ai/Aria; if they are, report it as a defect",
    )


def print_rows(material: Material, selection: Selection, rows: Iterator[ShownRow], console: Console) -> None:
    """The rows in the terminal, and the rejected ones behind them."""
    console.print(f"{selection.describe()}:", highlight=False)
    if selection.chosen:
        terminal.show_legend(console)
    for row in rows:
        terminal.show_row(row, console)
    terminal.show_rejects("training", material.train_rows.rejects, console)
    terminal.show_rejects("evaluation", material.eval_rows.rejects, console)


def check_page(path: Path) -> None:
    """Refuse a place for the page before any row is read.

    Raises:
        UserError: its folder is not there, or something else is in its place.
    """
    try:
        has_folder, taken = path.parent.is_dir(), path.exists() and not _is_page(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    if not has_folder:
        raise UserError("there is no such folder for the page", where=str(path.parent), fix="make it first")
    if taken:
        raise UserError("something else is there than an older page", where=str(path), fix="name another file")


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(page.MARK)) == page.MARK.encode()


def write_page(
    recipe: Recipe,
    material: Material,
    selection: Selection,
    drawn: Sequence[DrawnRow],
    path: Path,
    refusal: UserError | None,
) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: the disk does not take it.
    """
    sets = {"training": material.train_rows, "evaluation": material.eval_rows}
    overview = page.Overview(
        title=recipe.file.name,
        facts=_facts(recipe),
        counts={kind: rows.counts() for kind, rows in sets.items() if rows.plans or rows.rejects},
        rejects={kind: rows.rejects for kind, rows in sets.items()},
        shown=f"{selection.describe().capitalize()}.",
        refusal=None if refusal is None else str(refusal),
    )
    try:
        replace_text(path, page.compose(overview, drawn))
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"the page can't be written: {error.strerror or error}", where=str(path), fix="name another file")


def _facts(recipe: Recipe) -> list[tuple[str, str]]:
    """What decides how rows look."""
    data = recipe.data
    return [
        ("model", recipe.model.path),
        ("data.image_size", f"{data.image_size}, {'split' if data.split_images else 'not split'}"),
        ("data.max_tokens", f"{data.max_tokens:,}; longer rows: {data.too_long}"),
        ("data.loss_on", data.loss_on),
        ("data.num_frames", f"{data.num_frames}, {'with' if data.timestamps else 'without'} timestamps"),
        ("train.seed", str(recipe.train.seed)),
    ]
