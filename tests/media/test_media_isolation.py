"""A process that can be killed: what goes over the pipe, how it ends, and that nobody is left behind.

The process here is made of a module of the test's own, which does whatever a request asks for.
"""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import pickle  # noqa: TID251 (what a loader does to send objects to its workers)
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aria_finetune.errors import MediaError, UserError
from aria_finetune.media import isolated_process
from aria_finetune.media.isolation import Isolated, Reply, Wording

ROOT = Path(__file__).resolve().parents[2]
PR_SET_CHILD_SUBREAPER = 36

TOY = """
import os, re, signal, time
import numpy as np
from aria_finetune.errors import MediaError
from aria_finetune.media.isolated_process import main
from aria_finetune.media.signs_of_life import give_sign

def answer(request, content):
    do = request["do"]
    if do == "echo":
        arrays = [np.frombuffer(bytes.fromhex(data), kind).reshape(shape) for kind, shape, data in request["arrays"]]
        return {"said": request["say"], "bytes": None if content is None else len(content)}, arrays
    if do == "mirror":
        return {}, [np.frombuffer(content, np.uint8)]
    if do == "who":
        return {"process": os.getpid(), "session": os.getsid(0), "folder": os.getcwd()}, ()
    if do == "refuse":
        raise MediaError("media_too_small", request["say"])
    if do == "hunger":
        raise MemoryError
    if do == "sleep":
        time.sleep(request["time"])
        return {}, ()
    if do == "spin":
        re.match("(a+)+$", "a" * 64 + "b")  # in C and with the interpreter's lock for longer than anyone waits
    if do == "stubborn":
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        time.sleep(1e6)
    if do == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if do == "work":
        for _ in range(request["steps"]):
            if request["time"]:
                time.sleep(request["time"])
            give_sign()
        return {"done": request["steps"]}, ()
    if do == "abort":
        os.abort()
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "exit":
        os._exit(7)
    if do == "raise":
        raise LookupError("nothing that anyone expects")
    if do == "once" and not os.path.exists(request["mark"]):
        open(request["mark"], "w").close()
        os.abort()
    return {"done": do}, ()

if __name__ == "__main__":
    main(answer, deed="play with it", patient=PATIENT)
"""


class Toy(Isolated):
    SERVER = "toy_process"
    WORDING = Wording(work="playing", worker="the player", does="plays with media")

    def ask(self, do: str, content: bytes | None = None, **more: object) -> Reply:
        return self._ask({"do": do, **more}, content)

    def process(self) -> int:
        return self.ask("who").header["process"]


class PatientToy(Toy):
    SERVER = "patient_process"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the modules of both processes."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "toy_process.py").write_text(TOY.replace("PATIENT", "False"))
    (folder / "patient_process.py").write_text(TOY.replace("PATIENT", "True"))
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def toy():
    made = Toy(1.0)
    yield made
    made.close()


@pytest.fixture
def patient():
    made = PatientToy(1.0)
    yield made
    made.close()


def refusal(toy: Toy, do: str, **more: object) -> MediaError:
    with pytest.raises(MediaError) as refused:
        toy.ask(do, **more)
    return refused.value


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def pickled(toy: Toy) -> Toy:
    return pickle.loads(pickle.dumps(toy))  # noqa: S301 (our own)


class TestExchange:
    @pytest.mark.parametrize("kind", ["|u1", "<f8", ">f8", "<i4", "|b1"])
    @pytest.mark.parametrize("shape", [(0,), (1,), (2, 3), (3, 0, 5), (70_000,), ()])
    def test_arrays_come_back_bit_for_bit(self, toy, kind, shape):
        sent = np.random.default_rng(0).bytes(int(np.prod(shape)) * np.dtype(kind).itemsize)
        reply = toy.ask("echo", say="here", arrays=[(kind, shape, sent.hex())] * 2)
        assert reply.header == {"said": "here", "bytes": None}
        for array in reply.arrays:
            assert (array.dtype.str, array.shape, array.tobytes()) == (kind, shape, sent)
            assert array.flags.writeable

    @pytest.mark.parametrize("size", [0, 1, 65_536, 40_000_000])
    def test_bytes_go_there_and_back(self, toy, size):
        toy.seconds = 20.0
        content = np.random.default_rng(0).bytes(size)
        (array,) = toy.ask("mirror", content).arrays
        assert array.tobytes() == content

    def test_text_of_any_kind(self, toy):
        said = 'lone \udcff, NUL \0, "quotes" and \U0001f600'
        assert toy.ask("echo", say=said, arrays=[]).header["said"] == said

    def test_an_error_of_the_medium_is_no_reason_to_start_again(self, toy):
        before = toy.process()
        error = refusal(toy, "refuse", say="9 px")
        assert (error.reason, error.detail) == ("media_too_small", "9 px")
        error = refusal(toy, "hunger")
        assert (error.reason, error.detail) == ("media_unreadable", "there is not enough memory to play with it")
        assert toy.process() == before


class TestDeadline:
    @pytest.mark.parametrize(("do", "most"), [("sleep", 1.4), ("spin", 1.4), ("stubborn", 2.4), ("stop", 2.4)])
    def test_a_hang_ends(self, toy, monkeypatch, do, most):
        monkeypatch.setattr("aria_finetune.media.isolation.GRACE_SECONDS", 0.5)
        before, began = toy.process(), time.monotonic()
        error = refusal(toy, do, time=1e6)
        assert 0.9 < time.monotonic() - began < most
        assert (error.reason, error.detail) == ("media_unreadable", "playing took longer than 1 s and was stopped")
        assert not runs(before)
        assert toy.process() != before

    def test_the_time_of_one_medium_does_not_count_for_the_next(self, toy):
        before = toy.process()
        for _ in range(3):
            toy.ask("sleep", time=0.6)
        assert toy.process() == before

    def test_signs_of_life_do_not_count_where_all_must_be_done_in_time(self, toy):
        assert "longer than 1 s" in refusal(toy, "work", steps=20, time=0.1).detail

    def test_signs_of_life_put_it_off(self, patient, monkeypatch):
        monkeypatch.setattr("aria_finetune.media.isolation.GRACE_SECONDS", 0.1)
        began = time.monotonic()
        assert patient.ask("work", steps=16, time=0.2).header == {"done": 16}
        assert time.monotonic() - began > 3
        assert patient.ask("work", steps=100_000, time=0).header == {"done": 100_000}
        assert "longer than 1 s" in refusal(patient, "work", steps=2, time=1.5).detail

    def test_signs_of_life_do_not_put_it_off_forever(self, monkeypatch):
        """With the kernel's part replaced: a deadline of 1 s, and a clock that we turn."""
        now, told, timers = [0.0], [], []

        class Pipe:
            def send_bytes(self, message: bytes) -> None:
                told.append((now[0], message))

        monkeypatch.setattr(isolated_process.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(isolated_process.signal, "setitimer", lambda _, seconds: timers.append(seconds))
        deadline = isolated_process._Deadline(Pipe(), 1.0)
        while now[0] < 1000:
            now[0] += 0.125
            deadline.put_off()
        times = [moment for moment, _ in told]
        assert {message for _, message in told} == {b""}
        assert times[:3] == [0.25, 0.5, 0.75]
        assert times[-1] < isolated_process.LONGEST <= times[-1] + 0.25
        assert timers == [1.0] * (len(told) + 1)

    def test_a_caller_that_is_interrupted_gets_no_stale_answer(self):
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        slow = Toy(30.0)
        slow.process()
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                slow.ask("sleep", time=0.6)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert slow.ask("echo", say="new", arrays=[]).header["said"] == "new"
        slow.close()


class TestCrash:
    @pytest.mark.parametrize(
        ("do", "told"),
        [
            ("abort", "SIGABRT"),
            ("kill", "SIGKILL; perhaps memory ran out"),
            ("exit", "exit code 7"),
            ("raise", "exit code 1"),
        ],
    )
    def test_it_is_told_from_a_time_out(self, toy, do, told):
        error = refusal(toy, do)
        assert (error.reason, error.detail) == ("media_unreadable", f"the player crashed ({told})")
        assert toy.ask("fine").header == {"done": "fine"}

    def test_a_medium_is_not_blamed_for_one_crash(self, toy, tmp_path):
        assert toy.ask("once", b"with bytes", mark=str(tmp_path / "tried")).header == {"done": "once"}
        assert (tmp_path / "tried").exists()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    @pytest.mark.parametrize("size", [None, 10_000_000])
    def test_one_that_was_ended_while_idle_is_started_again(self, toy, number, size):
        before = toy.process()
        os.kill(before, number)
        content = None if size is None else bytes(size)
        assert toy.ask("echo", content, say="there", arrays=[]).header["bytes"] == size
        assert toy.process() != before

    def test_no_core_file_is_left(self, toy, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        refusal(toy, "abort")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["modules"]


class TestLife:
    def test_it_starts_with_the_first_request_and_ends_when_closed(self):
        toy = Toy()
        assert toy._server is None
        process = toy.process()
        toy.close()
        toy.close()
        assert not runs(process)
        assert toy.process() != process
        toy.close()

    def test_it_ends_when_nobody_refers_to_it(self):
        toy = Toy()
        process = toy.process()
        del toy
        assert not runs(process)

    def test_the_terminals_signals_are_not_for_it(self, toy):
        header = toy.ask("who").header
        assert header["session"] == header["process"]
        os.kill(header["process"], signal.SIGINT)
        assert toy.process() == header["process"]

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
    def test_a_copy_has_its_own(self, toy, duplicate):
        toy.seconds = 7.0
        ours = toy.process()
        other = duplicate(toy)
        assert type(other) is Toy
        assert other.seconds == 7.0
        assert other.process() != ours
        other.close()
        assert toy.process() == ours

    def test_a_fork_has_its_own(self, toy):
        ours = toy.process()
        read, write = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork").Process(target=lambda: write.send(toy.process()))
        fork.start()
        assert read.poll(30)
        theirs = read.recv()
        fork.join()
        assert fork.exitcode == 0
        assert theirs != ours
        assert toy.process() == ours, "the fork took ours along"
        until = time.monotonic() + 5
        while runs(theirs) and time.monotonic() < until:
            time.sleep(0.02)
        assert not runs(theirs)

    def test_nothing_is_left_open_by_those_that_end(self, toy):
        toy.process()
        before = open_descriptors()
        for do in ("abort", "raise", "sleep"):
            refusal(toy, do, time=1e6)
        toy.process()
        assert open_descriptors() == before
        toy.close()
        assert open_descriptors() < before

    def test_one_that_does_not_start_is_no_fault_of_the_medium(self, monkeypatch, tmp_path):
        before = open_descriptors()
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(UserError, match=r"process that plays with media did not start \(exit code 1\)") as refused:
            Toy().process()
        assert refused.value.fix
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
        with pytest.raises(UserError, match="No such file"):
            Toy().process()
        assert open_descriptors() == before

    def test_no_module_comes_from_the_folder_it_is_started_in(self, toy, tmp_path, monkeypatch):
        (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
        assert toy.ask("who").header["folder"] == str(tmp_path)


OWNER = """
import os, sys, time
from aria_finetune.media.isolation import Isolated, Wording

class Toy(Isolated):
    SERVER = "toy_process"
    WORDING = Wording("playing", "the player", "plays")

toy = Toy(2.0)
print(toy._ask({"do": "who"}).header["process"], flush=True)
if sys.argv[1] == "forked" and os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
elif sys.argv[1] == "working":
    print("asking", flush=True)
    toy._ask({"do": "spin"})
elif sys.argv[1] == "signs":
    toy.SERVER = "patient_process"
    toy.close()
    print(toy._ask({"do": "who"}).header["process"], flush=True)
    toy._ask({"do": "work", "steps": 1000, "time": 0.1})
elif sys.argv[1] != "exits":
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to us only where a process can ask for them")
class TestOrphans:
    @pytest.fixture(autouse=True)
    def _adopted(self):
        """Orphans of our children become ours, so that we see how they end."""
        prctl = ctypes.CDLL(None).prctl
        assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        yield
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def start(self, modules: Path, case: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", OWNER, case],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(modules), str(ROOT)])},
            stdout=subprocess.PIPE,
            text=True,
        )

    def exit_code(self, process: int, within: float) -> int:
        until = time.monotonic() + within
        while time.monotonic() < until:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        pytest.fail(f"process {process} outlived its owner by {within} s")

    def test_none_is_left_at_a_normal_exit(self, modules):
        with self.start(modules, "exits") as owner:
            process = int(owner.stdout.readline())
            assert owner.wait(30) == 0
        assert not runs(process)

    @pytest.mark.parametrize(
        ("case", "within", "code"),
        [("idle", 1.5, 0), ("forked", 1.5, 0), ("working", 4.0, -signal.SIGALRM), ("signs", 2.5, 0)],
    )
    def test_none_is_left_when_the_owner_is_killed(self, modules, case, within, code):
        """Idle, with a fork of the owner alive, or giving signs of life, it ends soon; else at the deadline of 2 s."""
        owner = self.start(modules, case)
        process = int(owner.stdout.readline())
        fork = int(owner.stdout.readline()) if case == "forked" else None
        if case == "signs":
            process = int(owner.stdout.readline())
        elif case == "working":
            owner.stdout.readline()
            time.sleep(0.2)
        owner.kill()
        owner.wait()
        try:
            assert self.exit_code(process, within) == code
        finally:
            owner.stdout.close()
            if fork is not None:
                os.kill(fork, signal.SIGKILL)
                os.waitpid(fork, 0)
