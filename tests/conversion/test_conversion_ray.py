"""Ray gives the same bytes as this process, wherever it is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversion_sources import lines, mixed_records, names, steady, text_record, write_list, write_source, written

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.conversion.engines import Engine
from aria_finetune.conversion.engines import engine as open_engine
from aria_finetune.conversion.plan import SPLIT_BYTES
from aria_finetune.errors import UserError

ANY_REJECTS = ConversionOptions(max_rejects=10_000)


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPLIT_BYTES, "header", 4000)


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[Engine]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patched:
        # What its processes find is what this one finds.
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with open_engine("ray", 2) as engine:
            yield engine
        ray.shutdown()


def test_the_same_bytes(tmp_path: Path, ray_engine: Engine) -> None:
    source = write_source(tmp_path / "in" / "data.jsonl", mixed_records(tmp_path / "in", 300))
    convert(source, tmp_path / "local", ANY_REJECTS)
    convert(source, tmp_path / "ray", ANY_REJECTS, ray_engine)
    assert steady(tmp_path / "ray") == steady(tmp_path / "local")
    assert ray_engine.progress() == (300, len(lines(tmp_path / "ray" / "rejects.jsonl")))


def test_a_list_that_is_cut_wrongly(tmp_path: Path, ray_engine: Engine) -> None:
    records = [text_record(number) for number in range(200)]
    records[100] = dict(text_record(100), other=[text_record(1), text_record(2)])
    source = write_list(tmp_path / "data.json", records)
    convert(source, tmp_path / "out", ANY_REJECTS, ray_engine)
    assert [record["source"]["ordinal"] for record in written(tmp_path / "out")] == list(range(200))


def test_a_broken_file_is_told_as_by_this_process(tmp_path: Path, ray_engine: Engine) -> None:
    source = write_source(tmp_path / "data.jsonl", [text_record(number) for number in range(200)])
    with source.open("ab") as stream:
        stream.write(b'{"conversations": "\xff"}\n')
    with pytest.raises(UserError, match="is not UTF-8") as caught:
        convert(source, tmp_path / "out", ANY_REJECTS, ray_engine)
    assert caught.value.where == str(source)
    assert names(tmp_path) == {"data.jsonl"}


def test_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="ray is not installed") as caught, open_engine("ray", 2):
        pytest.fail("there is no ray")
    assert caught.value.fix == "pip install 'aria-finetune[ray]'"
