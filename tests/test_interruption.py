"""Signals: raised where nothing is to be kept, remembered where something is, final the second time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from aria_finetune.interruption import Interrupted, Interruption, shield_worker

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _only_where_python_has_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before, "the handlers were not put back"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_what_goes_on(number: int) -> None:
    undone = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            undone.append(True)

    with Interruption() as interruption, pytest.raises(Interrupted) as stopped:
        work()
    assert undone
    assert stopped.value.exit_code == 128 + number
    assert str(stopped.value) == signal.Signals(number).name
    assert interruption.asked == number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_waits_to_be_asked_for(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    with Interruption() as interruption:
        with interruption.deferred():
            interruption.check()
            os.kill(os.getpid(), number)
            assert interruption.asked == number
        with pytest.raises(Interrupted):
            interruption.check()
    said = capfd.readouterr().err
    assert f"{signal.Signals(number).name}: stopping after this step" in said
    assert "a second signal stops at once" in said


def test_what_was_asked_before_is_raised_where_deferring_begins() -> None:
    """A library may have swallowed the first raise."""
    with Interruption() as interruption:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted), interruption.deferred():
            pytest.fail("the block was entered")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(number: int) -> None:
    child = os.fork()
    if child == 0:
        with Interruption() as interruption, interruption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), number)
        os._exit(77)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number


def test_a_forked_worker_goes_on() -> None:
    with Interruption() as interruption:
        child = os.fork()
        if child == 0:
            for number in (*SIGNALS, *SIGNALS):
                os.kill(os.getpid(), number)
            shield_worker(0)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if interruption.asked is None else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_beside_the_main_thread_signals_are_left_alone() -> None:
    found: list[object] = []

    def enter() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with Interruption() as interruption:
            found.extend([signal.getsignal(signal.SIGTERM) is before, interruption.asked])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [True, None]
