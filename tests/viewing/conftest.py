"""Rows as the collator makes them, from records written by hand."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.collation import Batch, Collator
from aria_finetune.data.pictures import Showing
from aria_finetune.data.rows import RowPlan, Viewing, plan_row
from aria_finetune.data_formats.record import Media, Record
from aria_finetune.viewing.batches import SeenRow, rows_of
from aria_finetune.viewing.rows import Place, ShownRow, show

PAD = 2
Collated = tuple[SeenRow, RowPlan]


@pytest.fixture
def collate(letter_chat: ChatTokenizer) -> Callable[..., Collated]:
    """The row that a record becomes in a batch; `spoil` may change the batch first."""

    def made(
        record: Record, viewing: Viewing | None = None, *, spoil: Callable[[Batch], None] | None = None
    ) -> Collated:
        shown = viewing or Viewing()
        plan = plan_row(record, shown, letter_chat)
        showing = Showing(split_images=shown.split_images)
        collator = Collator([plan], letter_chat, PAD, loss_on=shown.loss_on, showing=showing, on_bad_media="skip")
        batch = collator([{"row": 0}])
        if spoil:
            spoil(batch)
        (seen,) = rows_of(batch, [0], [plan])
        return seen, plan

    return made


@pytest.fixture
def place() -> Place:
    return Place(1, 7, "train.jsonl:4", "messages:train.jsonl:4", "data/train.jsonl", 2.0)


@pytest.fixture
def shown(collate: Callable[..., Collated], letter_chat: ChatTokenizer, place: Place) -> Callable[..., ShownRow]:
    """A record as it is shown."""

    def made(
        record: Record, viewing: Viewing | None = None, *, spoil: Callable[[Batch], None] | None = None
    ) -> ShownRow:
        seen, plan = collate(record, viewing, spoil=spoil)
        return show(seen, plan, place, letter_chat, (viewing or Viewing()).vision_tokens)

    return made


@pytest.fixture
def make_pdf(tmp_path: Path) -> Callable[..., Media]:
    """Write a PDF whose pages are of these colours, and describe it as a record does."""

    def made(name: str, colours: Sequence[str], size: tuple[int, int] = (200, 100), page: int | None = None) -> Media:
        first, *others = (Image.new("RGB", size, colour) for colour in colours)
        stream = io.BytesIO()
        first.save(stream, "PDF", save_all=True, append_images=others)
        (tmp_path / name).write_bytes(stream.getvalue())
        return Media(
            "document", str(tmp_path / name), "", "application/pdf", *size, frames=len(colours), page=page, origin=name
        )

    return made
