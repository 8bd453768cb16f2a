"""Rows that a run began with: a row whose file is lost later keeps its place, and only such a row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from aria_finetune.conversion import ConversionOptions, Reject, convert, shards
from aria_finetune.data.begun import fingerprint_row, read_begun_rows, write_begun_rows
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.collation import BadRow, Collator
from aria_finetune.data.dataset import DataSource, RowSet, load_rows
from aria_finetune.data.rows import Viewing
from aria_finetune.errors import TooManyRejects


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four records in LLaVA's format: a picture each, but for the third."""
    records = []
    for number in range(4):
        record = {"id": f"row-{number}", "conversations": [
            {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"number {number}"}]}  # fmt: skip
        if number == 2:
            record["conversations"][0]["value"] = "what?"  # type: ignore[index]
        else:
            record["image"] = f"{number}.png"
            Image.new("RGB", (64, 48), (number * 40, 0, 0)).save(tmp_path / f"{number}.png")
        records.append(record)
    (tmp_path / "llava.json").write_text(json.dumps(records))
    return tmp_path / "llava.json"


@pytest.fixture
def chat(tiny_aria_processor: object) -> ChatTokenizer:
    return ChatTokenizer(tiny_aria_processor.tokenizer)  # type: ignore[attr-defined]


def read(source: Path, chat: ChatTokenizer, begun: Path | None = None, max_rejects: int = 0) -> RowSet:
    return load_rows(
        [DataSource(source)], Viewing(), chat, media_store=source.parent / "store", max_rejects=max_rejects,
        begun=read_begun_rows(begun) if begun else None,
    )  # fmt: skip


def test_a_lost_row_keeps_its_place_and_its_fingerprint(source: Path, chat: ChatTokenizer, tmp_path: Path) -> None:
    whole = read(source, chat)
    write_begun_rows(whole.plans, tmp_path / "rows.jsonl")
    (tmp_path / "1.png").unlink()
    (tmp_path / "3.png").write_bytes(b"")
    rows = read(source, chat, tmp_path / "rows.jsonl")
    assert [plan.record.id for plan in rows.plans] == [plan.record.id for plan in whole.plans]
    assert [plan.lost and plan.lost.reason for plan in rows.plans] == [None, "media_missing", None, "media_unreadable"]
    assert [fingerprint_row(plan) for plan in rows.plans] == [fingerprint_row(plan) for plan in whole.plans]
    assert rows.rejects == []

    batch = Collator(rows.plans, chat, 0, on_bad_media="skip")([{"row": 1}, {"row": 2}])
    assert batch["rows"].tolist() == [2]
    (bad,) = batch["bad_media"]
    assert bad == BadRow(
        1, "llava:llava.json:1", "llava.json:1", str(tmp_path / "1.png"), "media_missing", rows.plans[1].lost.detail
    )  # type: ignore[union-attr]


def test_without_the_rows_it_began_with_a_lost_row_is_a_reject(source: Path, chat: ChatTokenizer) -> None:
    (source.parent / "1.png").unlink()
    with pytest.raises(TooManyRejects, match="media_missing"):
        read(source, chat)


def test_a_record_that_never_was_a_row_stays_rejected(source: Path, chat: ChatTokenizer, tmp_path: Path) -> None:
    (tmp_path / "1.png").unlink()
    write_begun_rows(read(source, chat, max_rejects=1).plans, tmp_path / "rows.jsonl")
    assert len(read(source, chat, tmp_path / "rows.jsonl", max_rejects=1).rejects) == 1


def test_a_row_that_is_rejected_for_its_text_is_not_lost(source: Path, chat: ChatTokenizer, tmp_path: Path) -> None:
    plans = read(source, chat).plans
    write_begun_rows(plans, tmp_path / "rows.jsonl")
    begun = read_begun_rows(tmp_path / "rows.jsonl")
    reject = Reject("llava.json", 1, None, "llava:llava.json:1", "media_missing", "gone")
    assert begun.lost(reject)
    assert begun.lost(replace(reject, reason="empty_answer")) is None
    assert begun.lost(replace(reject, id="llava:llava.json:2")) is None


def test_another_text_is_another_row(source: Path, chat: ChatTokenizer) -> None:
    before = [fingerprint_row(plan) for plan in read(source, chat).plans]
    source.write_text(source.read_text().replace("number 2", "number two"))
    after = [fingerprint_row(plan) for plan in read(source, chat).plans]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_damaged_list_of_rows_knows_none(source: Path, chat: ChatTokenizer, tmp_path: Path) -> None:
    for text in ("{", '{"file": 1}', "[]\n"):
        (tmp_path / "rows.jsonl").write_text(text)
        begun = read_begun_rows(tmp_path / "rows.jsonl")
        assert begun.lost(Reject("llava.json", 1, None, "llava:llava.json:1", "media_missing", "gone")) is None


def test_a_lost_row_of_a_packed_set_leaves_the_order_as_it_was(
    source: Path, chat: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a row group come near each other, so that one that forgot its own would move others."""
    monkeypatch.setattr(shards, "ROW_GROUP_RECORDS", 2)
    convert(source, tmp_path / "packed", ConversionOptions(pack="parquet"))
    whole = read(tmp_path / "packed", chat)
    assert whole.groups == [0, 0, None, 1]
    assert len(list(whole.order(0))) == 4
    write_begun_rows(whole.plans, tmp_path / "rows.jsonl")
    record = whole.plans[1].record
    reject = Reject(record.source.file, record.source.ordinal, None, record.id, "media_unreadable", "a disk is sick")
    lost = read_begun_rows(tmp_path / "rows.jsonl").lost(reject)
    assert lost is not None
    rows = replace(whole, plans=[whole.plans[0], lost, *whole.plans[2:]])
    assert rows.groups == whole.groups
    for seed in range(9):
        assert list(rows.order(seed)) == list(whole.order(seed))
