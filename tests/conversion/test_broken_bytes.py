"""Files broken byte by byte, and all that reads them: no crash, no hang, no memory that fills, and no error but those meant.

Readers run in a process that is watched, `broken_bytes`. By default for ten seconds, with `--soak` for half an hour.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SECONDS, SOAK_SECONDS = 10, 30 * 60
SEED = "1"
PATIENCE_SECONDS = 30
MOST_GROWN_MIB = 512
"""Memory that may be taken at most beyond that of the first few files of each kind. All of them are shorter than 50 KB, but a
header may be broken so that it tells of a picture just below the limit of 64 megapixels: 256 MB with four channels.
"""


def test_nothing_breaks_the_readers(tmp_path: Path, soak: bool) -> None:
    told = watched(
        tmp_path, seed=str(time.time_ns()) if soak else SEED, first=0, seconds=SOAK_SECONDS if soak else SECONDS
    )
    print(json.dumps(told, indent=1))
    assert told["grown_mib"] < MOST_GROWN_MIB
    kinds = {name.partition(":")[0] for name in told["met"]}
    assert {
        "lines",
        "list",
        "document",
        "utf-16",
        "table",
        "plain text",
        "gzip",
        "parquet",
        "tar",
        "subtitles",
    } <= kinds
    assert {"image decoded", "clip decoded", "pdf decoded", "tar converted"} <= kinds
    if soak:  # What is never sound any more, or never broken, tests nothing; a few seconds may leave one out.
        ends = Counter(tuple(name.split(": ")) for name in told["met"])
        assert all(ends[kind, end] for kind in kinds for end in ("read", "refused"))


def watched(folder: Path, *, seed: str, first: int, seconds: float) -> dict[str, Any]:
    """What the process says at its end; fails where it crashes, hangs or trips, and says with which file."""
    script = Path(__file__).with_name("broken_bytes.py")
    command = [sys.executable, str(script), str(folder), seed, str(first), str(seconds)]
    errors = folder / "stderr"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment()) as process,
    ):
        try:
            last = follow(process, errors, f"seed {seed}, ")
        finally:
            process.kill()
    return dict(json.loads(last))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def follow(process: subprocess.Popen[bytes], errors: Path, place: str) -> bytes:
    """The last line of what the process says, once it has ended well."""
    assert process.stdout is not None
    last, held = b"nothing was said", b""
    while True:
        if not select.select([process.stdout], [], [], PATIENCE_SECONDS)[0]:
            pytest.fail(f"{place}file {last.decode()}: no word for {PATIENCE_SECONDS} s")
        block = os.read(process.stdout.fileno(), 1 << 16)
        held += block
        *lines, held = held.split(b"\n")
        last = lines[-1] if lines else last
        if not block:
            break
    code = process.wait()
    if code:
        said = errors.read_text(encoding="utf-8", errors="replace")
        pytest.fail(f"{place}file {last.decode()}: exit code {code}\n{said[-3000:]}")
    return last


def test_a_crash_a_hang_and_a_slip_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself: each of the three ends the test."""
    monkeypatch.setattr(sys.modules[__name__], "PATIENCE_SECONDS", 1)
    for code, said in (
        ("import os; print(7, 'pdf', flush=True); os.abort()", r"file 7 pdf: exit code -6"),
        ("import time; print(8, 'tar', flush=True); time.sleep(60)", r"file 8 tar: no word for 1 s"),
        ("print(9, 'tar', flush=True); [][0]", r"file 9 tar: exit code 1\n.*IndexError"),
    ):
        errors = tmp_path / "stderr"
        with (
            errors.open("wb") as stderr,
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr) as process,
        ):
            with pytest.raises(pytest.fail.Exception) as caught:
                follow(process, errors, "")
            process.kill()
        assert re.search(said, str(caught.value), re.DOTALL)
