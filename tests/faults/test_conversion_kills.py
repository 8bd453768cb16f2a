"""Conversions that are killed and interrupted at any moment: started again, they end as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from conversion_process import Conversion, wait_until_gone
from conversion_sources import mixed_records, names, steady, write_list, write_source, write_video

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.errors import UserError

RECORDS = 6_000
REJECTS = ("--max-rejects", "10000", "--workers", "2")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    records = mixed_records(folder, RECORDS)
    write_video(folder / "v.mp4")
    for number in range(0, RECORDS, 50):
        turns = [{"from": "human", "value": "<video>?"}, {"from": "gpt", "value": f"{number}"}]
        records[number] = {"conversations": turns, "video": "v.mp4"}
    write_list(folder / "list.json", records)
    return write_source(folder / "data.jsonl", records)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, object], float]]:
    """The data set of each source as it is to be, and the seconds it takes to make."""
    made = {}
    for name in ("data.jsonl", "list.json"):
        folder = tmp_path_factory.mktemp("undisturbed")
        began = time.monotonic()
        ended = Conversion(source.with_name(name), folder / "out", *REJECTS, folder=folder).wait()
        assert ended.code == 0, ended.said
        made[name] = dict(steady(folder / "out")), time.monotonic() - began
        assert sum(file.startswith("data-") for file in made[name][0]) > 50
    return made


@pytest.mark.parametrize("name", ["data.jsonl", "list.json"])
def test_a_conversion_killed_again_and_again(
    source: Path, undisturbed: dict[str, tuple[dict[str, object], float]], tmp_path: Path, soak: bool, name: str
) -> None:
    wanted, seconds = undisturbed[name]
    chance, kills, amid, finished = random.Random(11), 0, 0, 0
    output, hidden = tmp_path / "sets" / "out", tmp_path / "sets" / ".out.converting"
    while kills < (20 if soak else 3) or not output.exists():
        if output.exists():
            assert steady(output) == wanted
            output.rename(tmp_path / f"finished-{finished}")
            finished += 1
        conversion = Conversion(source.with_name(name), output, *REJECTS, folder=tmp_path)
        if kills < (20 if soak else 3):
            deadline = time.monotonic() + chance.uniform(0.3, 1) * seconds
            while conversion.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            conversion.process.kill()
        ended = conversion.wait()
        assert ended.code in {0, -signal.SIGKILL}, ended.said
        kills += ended.code != 0
        assert wait_until_gone(conversion, 2), "processes go on without their parent"
        amid += (hidden / "parts").is_dir()
    assert steady(output) == wanted
    with pytest.raises(UserError, match="already"):
        convert(source.with_name(name), output, ConversionOptions())
    assert names(tmp_path / "sets") == {"out"}
    print(f"{kills} kills of the conversion of {name}, {amid} of them amid its splits, over {finished + 1} data sets")


def wait_for_parts(hidden: Path, count: int) -> list[Path]:
    while len(done := sorted((hidden / "parts").glob("?????.json"))) < count:
        time.sleep(0.002)
    return done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whom", ["process", "group"])
def test_a_signal_ends_it_at_once_and_it_goes_on_later(
    source: Path,
    undisturbed: dict[str, tuple[dict[str, object], float]],
    tmp_path: Path,
    number: signal.Signals,
    whom: str,
) -> None:
    hidden = tmp_path / ".out.converting"
    conversion = Conversion(source, tmp_path / "out", *REJECTS, folder=tmp_path)
    wait_for_parts(hidden, 5)
    send = os.kill if whom == "process" else os.killpg
    send(conversion.process.pid, number)
    ended = conversion.wait(20)
    assert ended.code == 128 + number, ended.said
    assert f"stopped by {number.name}" in ended.said
    assert "Traceback" not in ended.said
    assert wait_until_gone(conversion, 2)
    done = wait_for_parts(hidden, 5)
    assert not (tmp_path / "out").exists()
    marks = {path.name: path.stat().st_mtime_ns for path in done}

    again = Conversion(source, tmp_path / "out", *REJECTS, folder=tmp_path)
    wait_for_parts(hidden, len(done) + 1)
    assert {path.name: path.stat().st_mtime_ns for path in done} == marks, "what was done is done again"
    ended = again.wait()
    assert ended.code == 0, ended.said
    assert steady(tmp_path / "out") == undisturbed["data.jsonl"][0]


def test_a_second_conversion_to_the_same_place_is_refused(
    source: Path, undisturbed: dict[str, tuple[dict[str, object], float]], tmp_path: Path
) -> None:
    first = Conversion(source, tmp_path / "out", *REJECTS, folder=tmp_path)
    wait_for_parts(tmp_path / ".out.converting", 1)
    os.kill(first.process.pid, signal.SIGSTOP)
    second = Conversion(source, tmp_path / "out", *REJECTS, folder=tmp_path).wait()
    os.kill(first.process.pid, signal.SIGCONT)
    assert second.code == 2, second.said
    assert "another process is converting to it" in second.said
    ended = first.wait()
    assert ended.code == 0, ended.said
    assert steady(tmp_path / "out") == undisturbed["data.jsonl"][0]


def test_too_many_rejects_end_with_exit_code_3_and_the_data_set(source: Path, tmp_path: Path) -> None:
    ended = Conversion(source, tmp_path / "out", "--max-rejects", "10", "--workers", "2", folder=tmp_path).wait()
    assert ended.code == 3, ended.said
    assert "conversations were rejected, 10 allowed" in ended.said
    assert {"data-00000.jsonl", "manifest.json", "rejects.jsonl", "report.json"} <= names(tmp_path / "out")
