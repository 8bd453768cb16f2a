"""Errors and rows that could not be read, on their way from the loader's workers to the trainer."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch

from aria_finetune.data.collation import BadRow
from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.trainer.loader import MAX_IN_A_ROW, ErrorsAsBatches, SkippedRows, is_empty, raise_carried


class TestErrorsAsBatches:
    def collate(self, features: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        if features[0]["row"] == 1:
            raise UserError("unreadable", where="rows.jsonl:1", fix="mend it")
        if features[0]["row"] == 2:
            raise KeyError("a mistake of ours")
        return {"input_ids": torch.zeros(1)}

    def test_a_sound_batch_passes_as_it_is(self) -> None:
        batch = ErrorsAsBatches(self.collate)([{"row": 0}])
        assert list(batch) == ["input_ids"]
        raise_carried(batch)

    def test_a_users_error_arrives_whole_also_as_a_copy(self) -> None:
        """A copy is made of the same parts as what goes from process to process."""
        batch = copy.deepcopy(ErrorsAsBatches(self.collate)([{"row": 1}]))
        assert is_empty(batch)
        with pytest.raises(UserError) as raised:
            raise_carried(batch)
        assert str(raised.value) == "rows.jsonl:1: unreadable\n  fix: mend it"

    def test_a_mistake_of_ours_is_raised_where_it_happens(self) -> None:
        with pytest.raises(KeyError):
            ErrorsAsBatches(self.collate)([{"row": 2}])


def bad(row: int, reason: str = "media_missing") -> BadRow:
    return BadRow(row, f"id {row}", f"rows.jsonl:{row}", f"/media/{row}.png", reason, "it is gone")


def lost(*rows: int) -> dict[str, Any]:
    """A batch none of whose rows could be read."""
    return {"bad_media": [bad(row) for row in rows]}


def seen(*rows: int) -> dict[str, Any]:
    """A batch with a picture that could be read, and rows that could not."""
    return {"input_ids": torch.zeros(1), "tile_order": torch.zeros(1)} | (lost(*rows) if rows else {})


def text() -> dict[str, Any]:
    """A batch that needs no picture."""
    return {"input_ids": torch.zeros(1)}


class Watched(SkippedRows):
    """With what it recorded and said."""

    def __init__(self) -> None:
        self.recorded: list[Mapping[str, Any]] = []
        self.said: list[str] = []
        super().__init__(self.recorded.append, self.said.append)

    def train_on(self, *batches: dict[str, Any]) -> None:
        for batch in batches:
            self.take(batch, 5, training=True)


class TestSkippedRows:
    def test_each_row_is_taken_out_counted_recorded_and_said(self) -> None:
        watched, batch = Watched(), {**text(), "bad_media": [bad(3), bad(4, "media_changed")]}
        watched.train_on(batch)
        assert "bad_media" not in batch
        assert watched.reasons == {"media_missing": 1, "media_changed": 1}
        assert watched.recorded[0] == {"step": 5, "training": True, **asdict(bad(3))}
        assert watched.said == [
            "step 5: skipped row id 3 (rows.jsonl:3): /media/3.png: media_missing: it is gone",
            "step 5: skipped row id 4 (rows.jsonl:4): /media/4.png: media_changed: it is gone",
        ]

    @pytest.mark.parametrize("batch", [text(), seen()])
    def test_a_sound_batch_leaves_no_trace(self, batch: dict[str, Any]) -> None:
        watched, before = Watched(), set(batch)
        watched.train_on(batch)
        assert set(batch) == before
        assert not is_empty(batch)
        assert (watched.recorded, watched.said, watched.reasons) == ([], [], {})

    def test_more_in_a_row_than_a_few_bad_files_can_be(self) -> None:
        watched = Watched()
        watched.train_on(*(lost(row) for row in range(MAX_IN_A_ROW)))
        with pytest.raises(TooManyRejects, match=r"33 rows one after the other .* at rows.jsonl:99: /media/99"):
            watched.train_on(lost(99))
        assert len(watched.recorded) == MAX_IN_A_ROW + 1, "the last is recorded too"

    def test_a_picture_that_is_read_begins_the_count_anew_and_text_does_not(self) -> None:
        watched = Watched()
        half = [lost(row) for row in range(MAX_IN_A_ROW)]
        watched.train_on(*half, seen(), *(lost(row) for row in range(MAX_IN_A_ROW)), text())
        with pytest.raises(TooManyRejects):
            watched.train_on(lost(0))

    def test_a_whole_batch_counts_at_once(self) -> None:
        with pytest.raises(TooManyRejects, match="33 rows"):
            Watched().train_on(lost(*range(MAX_IN_A_ROW + 1)))

    def test_pictures_of_the_evaluation_say_nothing_of_those_of_training(self) -> None:
        watched = Watched()
        watched.train_on(*(lost(row) for row in range(MAX_IN_A_ROW)))
        with watched.evaluation():
            watched.take(seen(), 5, training=False)
        with pytest.raises(TooManyRejects):
            watched.train_on(lost(0))

    def test_rows_of_an_evaluation_are_recorded_when_it_is_over(self) -> None:
        watched = Watched()
        with watched.evaluation():
            watched.take(lost(1), 5, training=False)
            watched.take(seen(2), 5, training=False)
            assert (len(watched.said), watched.recorded) == (2, [])
        assert [(entry["row"], entry["training"]) for entry in watched.recorded] == [(1, False), (2, False)]
        assert watched.reasons == {}, "only rows that were to be trained on"

    def test_an_evaluation_that_is_broken_off_records_nothing_and_the_next_one_all_of_its_own(self) -> None:
        watched = Watched()
        with contextlib.suppress(InterruptedError), watched.evaluation():
            watched.take(lost(*range(20)), 5, training=False)
            raise InterruptedError
        assert watched.recorded == []
        with watched.evaluation():
            watched.take(lost(*range(20)), 5, training=False)
        assert [entry["row"] for entry in watched.recorded] == list(range(20))

    def test_a_restored_one_counts_on(self) -> None:
        first, second = Watched(), Watched()
        first.train_on(*(lost(row) for row in range(MAX_IN_A_ROW)))
        second.restore(json.loads(json.dumps(first.state())))
        assert second.reasons == {"media_missing": MAX_IN_A_ROW}
        with pytest.raises(TooManyRejects):
            second.train_on(lost(0))
        assert second.reasons["media_missing"] == MAX_IN_A_ROW + 1
