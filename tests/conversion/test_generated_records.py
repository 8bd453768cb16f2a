"""Thousands of records that are nearly right go through the whole engine: each is written or rejected, and nothing breaks.

`--soak` draws 10,000 for every family of formats. A failure names the batch, whose number is its seed.
"""

from __future__ import annotations

import ast
import csv
import inspect
import io
import json
import random
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest
from pyarrow import parquet
from random_records import RandomRecords

from aria_finetune.conversion import ConversionOptions, ConversionReport, convert, read_records
from aria_finetune.data_formats import registry
from aria_finetune.data_formats.errors import REASONS
from aria_finetune.data_formats.format import Format
from aria_finetune.data_formats.record import PART_TYPES, ROLES, Record
from aria_finetune.errors import UserError

CASES, SOAK_CASES = 1_000, 10_000
MOST_IN_A_FILE = 40
EXAMPLES = [known.example for known in registry.FORMATS]

COMPANIONS: dict[str, tuple[str, str, object]] = {
    "image-qa": ("val_questions.json", "val_answers.json", [{"question_id": 1, "answer": "2019", "answers": ["2019"]}]),
    "scienceqa": ("problems.json", "pid_splits.json", {"train": ["17"], "val": []}),
    "vqav2": (
        "v2_questions.json",
        "v2_annotations.json",
        {"annotations": [{"question_id": 4210, "image_id": 42, "answers": [{"answer": "ball"}]}]},
    ),
    "label-list": ("train.json", "classes.json", ["cat", "dog"]),
    "activitynet-qa": ("val_q.json", "val_a.json", [{"question_id": "v_abc123_1", "answer": "yes", "type": 3}]),
    "egoschema": ("questions.json", "subset_answers.json", {"0a1b2c": 1}),
    "nextqa": ("train.json", "map_vid_vidorID.json", {"0042": "1101/0042"}),
    "alpaca": (
        "data.json",
        "dataset_info.json",
        {"mine": {"file_name": "data.json", "columns": {"prompt": "question", "response": "answer"}}},
    ),
    "llava": (
        "data.json",
        "dataset_info.json",
        {"mine": {"file_name": "data.json", "formatting": "sharegpt", "columns": {"messages": "turns"}}},
    ),
}
"""For formats that read a second file, names for both and what may stand in the second."""


@dataclass(frozen=True)
class Batch:
    """A source of one file, the options to convert it with, and how many records it has, where that is certain."""

    source: Path
    options: ConversionOptions
    records: int | None = None
    may_be_refused: bool = False


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_record_is_written_or_rejected(family: str, tmp_path: Path, soak: bool) -> None:
    wanted, done, number = SOAK_CASES if soak else CASES, 0, 0
    seen = {known.name: 0 for known in registry.FAMILIES[family]}
    while done < wanted or not all(seen.values()):
        folder = tmp_path / "batch"
        folder.mkdir()
        form = registry.FAMILIES[family][number % len(seen)]
        batch, cases = make_batch(form, RandomRecords((family, number), words_of(form.name)), folder)
        check(batch, f"batch {number} of {family}, which is {form.name}: {batch.source}")
        shutil.rmtree(folder)
        done, number = done + cases, number + 1
        seen[form.name] += cases


@cache
def words_of(form: str) -> list[str]:
    """The short texts in the file that defines a format: names of its keys, and values that it knows."""
    code = inspect.getsource(sys.modules[registry.get(form).convert.__module__])
    constants = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    return sorted(text for text in constants if isinstance(text, str) and len(text) < 25 and "\n" not in text)


def make_batch(form: Format, draw: RandomRecords, folder: Path) -> tuple[Batch, int]:
    """Write records of a format, mutated, into a file of some kind; returns how many cases that were."""
    kind = draw.random.choice(kinds_of(form))
    count = 1 if kind == "document" else draw.random.randint(2, MOST_IN_A_FILE)
    records = [draw.record([form.example], EXAMPLES) for _ in range(count)]
    name, beside = "data.json", draw.random.random() < 0.5
    if beside and form.name in COMPANIONS:
        name, companion, content = COMPANIONS[form.name]
        content = draw.record([content]) if draw.random.random() < 0.5 else content
        (folder / companion).write_text(json.dumps(content))
    automatic = draw.random.random() < 0.2
    options = ConversionOptions(
        format="auto" if automatic else form.name,
        verify="none",
        max_rejects=10**9,
        evaluation=draw.random.random() < 0.2,
        take="chosen" if form.refused else None,
        answers=draw.random.choice(("both", "letter", "text")),
        columns=draw.random.choice(({}, {"question": "question", "answer": "answer"}, {"image": "id", "x": "id"})),
    )
    if form.name != "columns":
        options = replace(options, columns={})
    if automatic and kind in {"lines", "list"}:
        records[0] = form.example
    sure = write(kind, records, folder / name, draw.random) and form.unfold is None and not beside
    # Of a document, and of a text that may be a table, it depends on the records what they are taken for.
    return Batch(folder / name, options, count if sure else None, automatic or not sure), count


def kinds_of(form: Format) -> Sequence[str]:
    if form.unfold is not None and isinstance(form.example, dict):
        return ("document", "document", "document", "document", "list", "lines")
    if isinstance(form.example, str):
        return ("text", "text", "lines")
    usual = ("lines", "lines", "list", "list", "indented", "document", "damaged", "table", "parquet")
    return (*usual, "tar", "tar") if form.name == "webdataset" else usual


def write(kind: str, records: list[Any], path: Path, chance: random.Random) -> bool:
    """Write records to a file; returns whether it must give exactly as many, in their order."""
    writers: dict[str, Callable[[], object]] = {
        "list": lambda: path.write_text(json.dumps(records, default=repr)),
        "indented": lambda: path.write_text(json.dumps(records, default=repr, indent=2)),
        "document": lambda: path.write_text(json.dumps(records[0], default=repr)),
        "damaged": lambda: path.write_bytes(damaged(as_lines(records), chance)),
        "text": lambda: path.write_text("\n".join(map(str, records)), encoding="utf-8", errors="replace"),
        "table": lambda: path.write_text(as_table(records, chance), encoding="utf-8", errors="replace"),
        "parquet": lambda: write_parquet(records, path),
        "tar": lambda: write_tar(records, path),
    }
    if kind in writers:
        writers[kind]()
        return kind in {"list", "indented"}
    path.write_text(as_lines(records))
    # The second line tells that the first is no line of plain text.
    return as_lines(records).split("\n")[1].startswith(("{", "["))


def as_lines(records: Sequence[object]) -> str:
    return "".join(json.dumps(record, default=repr) + "\n" for record in records)


def damaged(text: str, chance: random.Random) -> bytes:
    """The text with pieces cut out, put in and doubled."""
    data = bytearray(text.encode())
    for _ in range(chance.randint(1, 5)):
        place = chance.randrange(len(data) + 1)
        length = chance.choice((1, 1, 2, 10, 100))
        piece = chance.choice(
            (b"", b"\n", b'"', b"}", b"[", b"NaN", b"\\ud800", b"\xff", data[place : place + length] * 2)
        )
        data[place : place + chance.choice((0, length))] = piece
    return bytes(data)


def as_table(records: Sequence[object], chance: random.Random) -> str:
    """The records as CSV or TSV: the keys of the first that is an object are the header."""
    rows = [record for record in records if isinstance(record, dict) and record]
    header = list(rows[0]) if rows else ["question", "answer"]
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=chance.choice(",\t"))
    writer.writerow(header)
    for record in rows:
        cells = [cell if isinstance(cell, str) else json.dumps(cell, default=repr) for cell in record.values()]
        writer.writerow(cells if chance.random() < 0.1 else (cells + [""] * len(header))[: len(header)])
    return stream.getvalue()


def write_parquet(records: Sequence[object], path: Path) -> None:
    """The records that fit into one table with the first of them; Parquet can't hold any value."""
    kept: list[dict[str, Any]] = []
    for record in records:
        if not isinstance(record, dict) or not record:
            continue
        try:
            parquet.write_table(pa.Table.from_pylist([*kept, record]), path, row_group_size=5)
            kept.append(record)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
    if kept:
        parquet.write_table(pa.Table.from_pylist(kept), path, row_group_size=5)
    else:
        path.write_text(as_lines(records))


def write_tar(records: Sequence[object], path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for number, record in enumerate(records):
            members = record.items() if isinstance(record, dict) else [("json", record)]
            for ending, value in members:
                data = value if isinstance(value, bytes) else json.dumps(value, default=repr).encode()
                member = tarfile.TarInfo(f"{number:03d}.{ending}".replace("\ud800", "?"))
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def check(batch: Batch, told: str) -> None:
    output = batch.source.with_name("out")
    try:
        report = convert(batch.source, output, batch.options)
    except UserError as error:
        if not batch.may_be_refused:
            pytest.fail(f"{told}: {error}")
        assert error.message, told  # noqa: PT017 (every other outcome is checked as well)
        assert not output.exists(), told
        return
    except Exception as error:
        raise AssertionError(f"{told}: {error!r}") from error
    try:
        check_accounts(output, report)
        check_in_place(batch, list(written(output)))
        if batch.records is not None:
            assert report.source_records == batch.records
            sources = [line["source"]["ordinal"] for line in written(output)]
            rejects = [line["ordinal"] for line in rejected(output)]
            assert {*sources, *rejects} == set(range(batch.records))
    except AssertionError as error:
        raise AssertionError(f"{told}: {error}") from error


def check_accounts(output: Path, report: ConversionReport) -> None:
    """Read is written plus rejected, in the report, in the files and in their sum; ids are unique; records are whole."""
    records, rejects = list(written(output)), list(rejected(output))
    assert (report.written, report.rejected) == (len(records), len(rejects))
    assert report.read == report.written + report.rejected >= report.source_records
    assert sum(report.reasons.values()) == report.rejected
    assert sum(report.formats.values()) == report.read
    told = strict(json.dumps(json.loads((output / "report.json").read_text(encoding="utf-8"))))
    assert told == report.to_dict()
    ids = [line["id"] for line in (*records, *rejects)]
    assert len(set(ids)) == len(ids)
    for line in rejects:
        assert line["reason"] in REASONS
        assert report.reasons[line["reason"]]
        assert len(line["detail"]) < 2000, line["detail"][:100]
    for line in records:
        check_record(line)


def check_in_place(batch: Batch, lines: Sequence[Any]) -> None:
    """Read in place, the records are the same: nothing is lost in writing, as infinity would be."""
    store = batch.source.with_name("store")
    records = read_records(batch.source, batch.options, on_reject=lambda _: None, media_store=store)
    for record, line in zip(records, lines, strict=True):
        stored = record.to_dict()
        for medium in (*stored["media"], *line["media"]):
            medium["path"] = medium["path"] and Path(medium["path"]).name
        assert json.loads(json.dumps(stored)) == line


def check_record(line: Any) -> None:
    record = Record.from_dict(line)
    assert record.to_dict() == line
    parts = [part for message in record.messages for part in message.content]
    assert all(message.role in ROLES and message.train in {None, True, False} for message in record.messages)
    assert all(part.type in PART_TYPES and (part.text is None) == (part.type != "text") for part in parts)
    assert {part.media for part in parts if part.media is not None} == set(range(len(record.media)))
    assert all(medium.kind in PART_TYPES for medium in record.media)
    assert isinstance(strict(record.meta), dict)
    assert record.tools is None or strict(record.tools) is not None
    assert all(isinstance(reference, str) for reference in record.references)


def written(output: Path) -> Iterator[Any]:
    return (value for shard in sorted(output.glob("data-*.jsonl")) for value in lines(shard))


def rejected(output: Path) -> Iterator[Any]:
    return lines(output / "rejects.jsonl")


def lines(path: Path) -> Iterator[Any]:
    return map(strict, split(path))


def split(path: Path) -> list[str]:
    """Lines as JSON Lines has them; Python's also end at other characters."""
    text = path.read_bytes().decode("utf-8")
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


def strict(text: str) -> Any:
    """A JSON value by the letter of the standard, read by the standard library."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), f"a key twice: {text[:200]}"
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
