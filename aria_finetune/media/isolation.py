"""Work on media in a process that can be killed: the side that asks.

A hang ends at a deadline, and a crash ends that process alone; both come out as a `MediaError` of the one medium.
Knows nothing of what is done to media: `isolated_process` is the other side, and modules that name a `SERVER` and
what goes over the pipe build on both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from aria_finetune.errors import MediaError, UserError

START_SECONDS = 120.0
"""How long the process may take to start: a cold network disk is slow, and no fault of a medium."""

GRACE_SECONDS = 5.0
"""How much later than the kernel's own deadline we stop waiting."""

TRIES = 2
"""How many processes a medium must end before it is to blame; the first may have been ended from outside."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What a process is called in errors: "`work` took longer than 30 s", "`worker` crashed", "it `does`"."""

    work: str
    worker: str
    does: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: a JSON object and arrays."""

    header: dict[str, Any]
    arrays: list[NDArray[Any]]


class Isolated:
    """Does something to media, one at a time, each within `seconds` and in a process of its own.

    The process starts with the first medium and anew after a time-out or a crash. A copy, a pickled one and a
    forked one (the workers of a loader) start their own. Not for several threads at once.
    """

    SERVER: ClassVar[str]
    WORDING: ClassVar[Wording]

    _server: _Server | None = None

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[Isolated], tuple[float]]:
        return type(self), (self.seconds,)

    def close(self) -> None:
        """End the process; the next medium starts another."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def _ask(self, request: Mapping[str, Any], content: bytes | None = None) -> Reply:
        """The answer to a request, which goes with the bytes of a medium where it lies in no file.

        Raises:
            MediaError: what the process says of the medium; `media_unreadable` when it took too long or crashed.
            UserError: the process can't be started.
        """
        code = 0
        for _ in range(TRIES):
            reply = self._try({**request, "seconds": self.seconds}, content)
            if isinstance(reply, Reply):
                return _without_error(reply)
            if reply == -signal.SIGALRM:
                raise MediaError(
                    "media_unreadable", f"{self.WORDING.work} took longer than {self.seconds:g} s and was stopped"
                )
            code = reply
        raise MediaError("media_unreadable", f"{self.WORDING.worker} crashed ({_told(code)})")

    def _try(self, request: Mapping[str, Any], content: bytes | None) -> Reply | int:
        """The answer, or how the process ended."""
        server, self._server = self._running(), None
        try:
            reply = server.exchange(request, content, self.seconds + GRACE_SECONDS)
        except TimeoutError:
            server.end()
            return -signal.SIGALRM
        except (EOFError, OSError):
            return server.end(patience=GRACE_SECONDS)
        except BaseException:
            # A signal's handler, say: an answer left unread would be taken for that of the next medium.
            server.end()
            raise
        self._server = server
        return reply

    def _running(self) -> _Server:
        if self._server is not None and self._server.is_ours:
            return self._server
        return _Server(self.SERVER, self.WORDING.does)


class _Server:
    """A process that runs, and our end of the pipe to it.

    Raises:
        UserError: it does not start.
    """

    def __init__(self, module: str, does: str) -> None:
        self.is_ours = True
        try:
            self._connection, theirs = Pipe()
            with theirs:
                self._process = _start(module, theirs)
        except OSError as error:
            raise _not_started(does, error.strerror or str(error)) from error
        self._end_at_exit = weakref.finalize(self, _end, self._connection, self._process)
        _servers.add(self)
        try:
            ready = self._connection.poll(START_SECONDS) and self._connection.recv_bytes()
        except (EOFError, OSError):
            ready = False
        if not ready:
            raise _not_started(does, _told(self.end(patience=GRACE_SECONDS)))

    def exchange(self, request: Mapping[str, Any], content: bytes | None, seconds: float) -> Reply:
        """Send a request and take the whole answer.

        Raises:
            TimeoutError: neither an answer nor a sign of life came for `seconds`.
            EOFError, OSError: the process has ended.
        """
        self._connection.send_bytes(json.dumps({**request, "has_content": content is not None}).encode())
        if content is not None:
            self._connection.send_bytes(content)
        message = b""
        while not message:  # an empty one is a sign of life
            if not self._connection.poll(seconds):
                raise TimeoutError
            message = self._connection.recv_bytes()
        header = json.loads(message)
        return Reply(header, [self._array(*described) for described in header.pop("arrays")])

    def _array(self, kind: str, shape: list[int]) -> NDArray[Any]:
        array = np.empty(shape, np.dtype(kind))
        self._connection.recv_bytes_into(array.reshape(-1).view(np.uint8).data)
        return array

    def end(self, patience: float = 0.0) -> int:
        """End the process, after `patience` seconds if it does not end by itself; returns its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._end_at_exit()
        return self._process.poll() or 0

    def leave_to_parent(self) -> None:
        """In a forked copy: let go of what belongs to the process that forked."""
        self.is_ours = False
        self._end_at_exit.detach()
        # Held open here, it would keep the process running when its owner is killed.
        self._connection.close()
        self._process.poll()  # not our child, which this makes it note


def _start(module: str, connection: Connection) -> subprocess.Popen[bytes]:
    # In a session of its own: Ctrl-C and Ctrl-Z at the terminal are for the run, and a picture that is half
    # decoded must not be taken for a bad one.
    return subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, "-P", "-m", module, str(connection.fileno())],
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # So that it finds the modules that this process finds, and none of the folder it happens to be started in.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


def _end(connection: Connection, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.kill()
    # One that waits for a dead network disk can't be killed; it must not take us along.
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)


def _not_started(does: str, reason: str) -> UserError:
    return UserError(
        f"the process that {does} did not start ({reason})",
        fix="see what it said above; there must be memory and a place in the process table for another Python",
    )


def _without_error(reply: Reply) -> Reply:
    if "error" in reply.header:
        raise MediaError(*reply.header["error"])
    return reply


def _told(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name + ("; perhaps memory ran out" if code == -signal.SIGKILL else "")


_servers: weakref.WeakSet[_Server] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for server in list(_servers):
        server.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)
