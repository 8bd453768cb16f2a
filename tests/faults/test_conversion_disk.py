"""A disk that runs full during a conversion: it says so, keeps what is done, and goes on when there is space."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversion_process import Conversion
from conversion_sources import llava, steady, write_image, write_source

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.conversion.plan import SPLIT_BYTES

MIB = 2**20
MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$0" && echo mounted && exec cat'


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[list[str], Path, Path]]:
    """Command line that starts a process which sees a real disk of 6 MiB, its folder there, and the same as we see it."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets us mount nothing")
    disk = tmp_path / "disk"
    disk.mkdir()
    holder = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", MOUNT, str(disk), str(6 * MIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"mounted\n"
        enter = ["nsenter", "--preserve-credentials", "-U", "-m", "-t", str(holder.pid), "--"]
        yield enter, disk, Path(f"/proc/{holder.pid}/root") / disk.relative_to("/")
        assert holder.stdin
        holder.stdin.close()


@pytest.mark.parametrize("pack", ["jsonl", "parquet"])
def test_a_disk_that_runs_full(
    small_disk: tuple[list[str], Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    enter, disk, seen = small_disk
    for number in range(40):
        path = write_image(tmp_path / "in" / f"{number}.bmp", size=(150, 150), color=number * 999)
    picture_bytes = path.stat().st_size
    records = [llava(f"{number}.bmp", answer="word " * 100) for number in range(40)]
    source = write_source(tmp_path / "in" / "data.jsonl", records)
    split_bytes = source.stat().st_size // 20
    monkeypatch.setitem(SPLIT_BYTES, "header", split_bytes)
    convert(source, tmp_path / "wanted", ConversionOptions(pack=pack))  # type: ignore[arg-type]
    needed = sum(path.stat().st_size for path in (tmp_path / "wanted").rglob("*") if path.is_file())
    if pack == "parquet":
        needed *= 2  # the media are there both ways until the end
    (seen / "filler").write_bytes(b"\0" * (6 * MIB - needed // 2))

    def start() -> tuple[int, str]:
        arguments = (source, disk / "out", "--workers", "2", "--pack", pack)
        ended = Conversion(*arguments, folder=tmp_path, split_bytes=split_bytes, prefix=enter).wait()
        assert "Traceback" not in ended.said, ended.said
        return ended.code, ended.said

    parts = seen / ".out.converting" / "parts"
    kept: dict[str, int] = {}
    for _ in range(2):
        code, said = start()
        assert code == 2, said
        told = re.search(
            r"error: (\S+): the disk ran full: ([\d.]+) MiB are written, about ([\d.]+) MiB more are needed, "
            r"([\d.]+) MiB are free\n  fix: free some space and start it again, which goes on",
            said,
        )
        assert told, said
        assert told[1] == str(disk / "out")
        written, more, free = (float(number) * MIB for number in told.groups()[1:])
        assert written == pytest.approx(needed / 2, abs=4 * picture_bytes)
        assert written + more == pytest.approx(needed, rel=0.5)
        assert free < 4 * picture_bytes
        finished = {path.name: path.stat().st_mtime_ns for path in parts.glob("?????.json")}
        assert kept.items() <= finished.items(), "what was done is done again"
        kept = finished
    assert len(kept) >= 5
    assert not (seen / "out").exists()

    os.truncate(seen / "filler", 0)
    code, said = start()
    assert code == 0, said
    assert steady(seen / "out") == steady(tmp_path / "wanted")
    assert {path.name for path in seen.iterdir()} == {"out", "filler"}
