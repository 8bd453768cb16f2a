"""Work on media in a process that can be killed: the loop of that process.

Reads one request at a time, a JSON object, where it says so followed by the bytes of a medium, and answers with a
JSON object and arrays. Ends when the other side, `isolation`, is gone. A deadline is the kernel's: SIGALRM ends
the process wherever it is, in C code too, and also when nobody is left to kill it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aria_finetune.errors import MediaError
from aria_finetune.media.signs_of_life import heard_by
from aria_finetune.redaction import redact_streams

READY = b"ready"
LONGEST = 240
"""How many deadlines long a medium may keep the process busy although it gives signs of life."""

Answer = tuple[dict[str, Any], Sequence[NDArray[Any]]]
AnswerRequest = Callable[[Mapping[str, Any], bytes | None], Answer]


def main(answer: AnswerRequest, *, deed: str, patient: bool = False) -> None:
    """Serve the connection whose file descriptor is the only argument of the process.

    Args:
        answer: makes the answer to a request and the bytes that came with it. Its `MediaError`s are answers too.
        deed: what can't be done to a medium when memory is short, for people: "decode it".
        patient: the deadline is not for all of a medium but for each time between two signs of life.
    """
    _prepare_process()
    connection: Connection = Connection(int(sys.argv[1]))
    try:
        connection.send_bytes(READY)
        _serve(connection, answer, deed, patient=patient)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The other side is gone, which is the usual end; there is nothing to tidy up.
        os._exit(0)


def _prepare_process() -> None:
    redact_streams()
    # What was ignored or blocked when the process was started would stay so.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C is for the run, which may still want this picture to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A crash is told by its signal; a core file would lie in the user's folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _serve(connection: Connection, answer: AnswerRequest, deed: str, *, patient: bool) -> None:
    """Answer requests until the other side is gone.

    A request has `seconds` and `has_content` beside what `answer` wants; the answer is `{"error": [reason, detail]}`
    or what `answer` gives, with `arrays`: the type and the shape of each array, whose bytes follow, one message each.

    Raises:
        EOFError, BrokenPipeError, ConnectionResetError: the other side is gone.
    """
    while True:
        request = json.loads(connection.recv_bytes())
        content = connection.recv_bytes() if request["has_content"] else None
        deadline = _Deadline(connection, request["seconds"])
        try:
            if patient:
                with heard_by(deadline.put_off):
                    header, arrays = answer(request, content)
            else:
                header, arrays = answer(request, content)
        except MediaError as error:
            header, arrays = {"error": [error.reason, error.detail]}, ()
        except MemoryError:
            header, arrays = {"error": ["media_unreadable", f"there is not enough memory to {deed}"]}, ()
        signal.setitimer(signal.ITIMER_REAL, 0)
        described = [(array.dtype.str, array.shape) for array in arrays]
        connection.send_bytes(json.dumps({**header, "arrays": described}).encode())
        for array in arrays:
            connection.send_bytes(array.reshape(-1).view(np.uint8).data)


class _Deadline:
    """The kernel ends the process `seconds` from now, or from when it was last put off."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._pause = min(1.0, seconds / 4)
        now = time.monotonic()
        self._next, self._last = now + self._pause, now + LONGEST * seconds
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def put_off(self) -> None:
        """Begin anew, and let the other side do so too; not at every call, for there are many."""
        now = time.monotonic()
        if self._next <= now < self._last:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
            self._connection.send_bytes(b"")
            self._next = now + self._pause
