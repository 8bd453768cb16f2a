"""Programs that would run on, fill memory or disk, look around or call out: each is cut off and leaves nothing behind."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from aria_finetune.metrics import sandbox
from aria_finetune.metrics.sandbox import Limits, run

FREE = Limits(cpu_seconds=5, wall_seconds=20)


def test_a_program_that_ends_well() -> None:
    assert run("assert 1 + 1 == 2\nprint('x' * 1000)").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(0)", "exit 0"),
        ("import os; os._exit(0)", "exit 0"),
        ("\x00", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_why_a_program_failed(program: str, reason: str) -> None:
    outcome = run(program, FREE)
    assert not outcome.passed
    assert outcome.reason.startswith(reason.split(":", maxsplit=1)[0])


def test_one_that_works_on_and_on() -> None:
    assert run("while True: pass", Limits(cpu_seconds=1, wall_seconds=30)).reason == "time"


def test_one_that_sleeps_on_and_on() -> None:
    assert run("import time; time.sleep(60)", Limits(wall_seconds=1)).reason == "time"


def test_one_that_takes_all_memory() -> None:
    outcome = run("x = bytearray(3 * 2**30)", FREE)
    assert (outcome.passed, outcome.reason) == (False, "MemoryError")


def test_one_that_fills_the_disk() -> None:
    program = "with open('big', 'wb') as f:\n    for _ in range(64): f.write(bytes(2**20)); f.flush()"
    assert not run(program, Limits(file_mib=4)).passed


def test_limits_can_not_be_raised_again() -> None:
    program = (
        "import resource\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_AS)\n"
        "assert soft == hard == 2048 * 2**20\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)"
    )
    assert run(program, FREE).passed


def test_it_sees_no_environment_and_no_word_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    program = (
        "import os, sys\n"
        "assert 'HF_TOKEN' not in os.environ\n"
        "assert sys.argv == [sys.argv[0]]\n"
        "assert sys.stdin is None or sys.stdin.read() == ''"
    )
    assert run(program, FREE).passed


def test_the_word_that_passes_stands_in_no_file_of_the_process() -> None:
    """One that says every word it finds, wherever it can, and ends before its tests."""
    program = (
        "import os, re\n"
        "for name in ('cmdline', 'environ', 'fd/0'):\n"
        "    for word in re.findall(rb'[0-9a-f]{32}', open('/proc/self/' + name, 'rb').read()):\n"
        "        for fd in range(3, 20):\n"
        "            try:\n"
        "                os.write(fd, word)\n"
        "            except OSError:\n"
        "                pass\n"
        "os._exit(0)\n"
        "assert False"
    )
    assert not run(program, FREE).passed


def test_its_folder_is_empty_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "import os\nassert set(os.listdir()) == {'answer.py', 'said', 'complained'}\nopen('left', 'w').write('x')"
    assert run(program, FREE).passed
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() != tmp_path


@pytest.mark.parametrize("alone", [False, True])
def test_what_it_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """A child that would beat on for a minute: its heart is a file that no longer grows."""
    if alone:
        monkeypatch.setattr(sandbox, "_without_network", lambda: ())
    heart = tmp_path / "heart"
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    for _ in range(600):\n"
        f"        open({str(heart)!r}, 'a').write('.')\n"
        "        time.sleep(0.1)\n"
        f"while not os.path.exists({str(heart)!r}): time.sleep(0.01)\n"
    )
    run(program, FREE)
    if not heart.exists():
        pytest.skip("nobody but root may start any process in there")
    time.sleep(0.3)
    beats = heart.stat().st_size
    time.sleep(0.5)
    assert heart.stat().st_size == beats


@pytest.mark.skipif(sandbox.has_network(), reason="this system gives users no network of their own")
def test_it_reaches_no_network() -> None:
    program = (
        "import socket\n"
        "assert [name for _, name in socket.if_nameindex()] == ['lo']\n"
        "try:\n"
        "    socket.create_connection(('127.0.0.1', 9), timeout=2)\n"
        "except OSError as error:\n"
        "    assert error.errno in (101, 111), error\n"
    )
    assert run(program, FREE).passed


def test_a_processor_second_is_all_the_same_without_a_network_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_without_network", lambda: ())
    assert run("assert True", FREE).passed
    assert run("while True: pass", Limits(cpu_seconds=1, wall_seconds=30)).reason == "time"
