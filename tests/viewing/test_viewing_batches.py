"""A batch taken apart again: the tokens and tiles of each row, and the rows that were left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aria_finetune.data.collation import BadRow, Collator
from aria_finetune.data.rows import Viewing, plan_row
from aria_finetune.data.tiles import fit_tile
from aria_finetune.viewing.batches import SeenRow, rows_of

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def collator(letter_chat, make_record, make_image) -> Collator:
    """A row with two tile sizes, one of text, and one with a picture twice."""
    media = [
        [make_image("large.png", (600, 600), RED), make_image("small.png", (60, 60), GREEN)],
        [],
        [make_image("blue.png", (50, 60), BLUE)],
    ]
    questions = (["What?", 0, 1], ["A longer question without a picture."], [0, 0, "?"])
    plans = [
        plan_row(make_record([("user", parts), ("assistant", ["Yes."])], shown, ordinal=number), Viewing(), letter_chat)
        for number, (parts, shown) in enumerate(zip(questions, media, strict=True))
    ]
    return Collator(plans, letter_chat, 2, on_bad_media="skip")


def taken(collator: Collator, *rows: int) -> list[SeenRow | BadRow]:
    return rows_of(collator([{"row": row} for row in rows]), rows, collator.plans)


def middles(seen: SeenRow) -> list[tuple[int, ...]]:
    return [tuple(tile.pixels[:, tile.height // 2, tile.width // 2].tolist()) for tile in seen.tiles]


def test_each_row_has_its_own_tokens_and_tiles(collator: Collator, letter_chat) -> None:
    rows = taken(collator, 2, 1, 0, 2)
    assert [seen.row for seen in rows] == [2, 1, 0, 2]
    assert [middles(seen) for seen in rows] == [[BLUE, BLUE], [], [RED, GREEN], [BLUE, BLUE]]
    for seen in rows:
        plan = collator.plans[seen.row]
        encoding = letter_chat.encode(plan.turns)
        assert seen.shown == list(zip(encoding.ids, encoding.labels, strict=True))
        assert len(seen.ids) == max(collator.plans[row].tokens for row in (0, 1, 2))
    np.testing.assert_array_equal(rows[2].tiles[0].pixels, fit_tile(Image.new("RGB", (600, 600), RED), 980).pixels)


def test_rows_that_were_left_out_keep_their_place(collator: Collator, tmp_path: Path) -> None:
    (tmp_path / "small.png").unlink()
    first, bad, last = taken(collator, 1, 0, 2)
    assert (first.row, last.row) == (1, 2)
    assert isinstance(bad, BadRow)
    assert (bad.row, bad.reason) == (0, "media_missing")
    assert middles(last) == [BLUE, BLUE]
    (alone,) = taken(collator, 0)
    assert alone == bad


def test_a_batch_of_other_rows_is_not_taken_for_these(collator: Collator) -> None:
    with pytest.raises(ValueError, match="holds rows"):
        rows_of(collator([{"row": 1}]), [2], collator.plans)
