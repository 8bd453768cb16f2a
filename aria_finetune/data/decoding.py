"""Tiles of media files, decoded in a process that can be killed.

A hang ends at a deadline, and a crash ends that process alone; both come out as a `MediaError` of the one medium.
Knows nothing of rows and batches, nor how anything is decoded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from aria_finetune.data.tiles import Tile
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.images import ImageLimits
from aria_finetune.media.videos import VideoLimits

SERVER = "aria_finetune.data.decoding_process"
START_SECONDS = 120.0
"""How long the process may take to start: a cold network disk is slow, and no fault of a medium."""

GRACE_SECONDS = 5.0
"""How much later than the kernel's own deadline we stop waiting."""

TRIES = 2
"""How many decoders a medium must end before it is to blame; the first may have been ended from outside."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Width and height in pixels of the upright image, and the tiles made of it."""

    size: tuple[int, int]
    tiles: list[Tile]


class Decoder:
    """Decodes media, one at a time, each within `seconds` and in a process of its own.

    The process starts with the first medium and anew after a time-out or a crash. A copy, a pickled one and a
    forked one (the workers of a loader) start their own. Not for several threads at once.
    """

    _server: _Server | None = None

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds

    def __getstate__(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def image(self, path: Path, tile: int, limits: ImageLimits, *, split: bool, sha256: str = "") -> DecodedImage:
        """Open an image and make its tiles, as `open_image` and `make_tiles` do.

        Args:
            path: a real path, free of links.
            tile: side of a tile in pixels.
            limits: what is accepted.
            split: overview and crops.
            sha256: of the bytes that the file is to have, as hexadecimal digits; empty where it is not known. Files
                above `decoding_process.HASHED_BYTES` are not compared with it.

        Raises:
            MediaError: as `open_image`; `media_unsafe_path` when there is a link in the path; `media_changed` when
                the file has other bytes; `media_unreadable` when decoding took too long or crashed.
            UserError: the decoding process can't be started.
        """
        wanted = {"path": str(path), "sha256": sha256, "limits": asdict(limits)}
        reply = self._ask({**wanted, "tile": tile, "split": split})
        width, height = reply.header["size"]
        return DecodedImage((width, height), reply.tiles)

    def frames(
        self, path: Path, times: Sequence[float], tile: int, limits: VideoLimits, *, sha256: str = ""
    ) -> list[Tile]:
        """Fit the frames of a video at `times` (seconds) into a tile each, as `read_frames` and `fit_tile` do.

        Raises:
            MediaError: as `read_frames`, and as `image`.
            UserError: the decoding process can't be started.
        """
        wanted = {"path": str(path), "sha256": sha256, "limits": asdict(limits)}
        return self._ask({**wanted, "tile": tile, "times": list(times)}).tiles

    def close(self) -> None:
        """End the process; the next medium starts another."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def _ask(self, request: Mapping[str, Any]) -> _Reply:
        code = 0
        for _ in range(TRIES):
            reply = self._try({**request, "seconds": self.seconds})
            if isinstance(reply, _Reply):
                return _without_error(reply)
            if reply == -signal.SIGALRM:
                raise MediaError("media_unreadable", f"decoding took longer than {self.seconds:g} s and was stopped")
            code = reply
        raise MediaError("media_unreadable", f"the decoder crashed ({_told(code)})")

    def _try(self, request: Mapping[str, Any]) -> _Reply | int:
        """The answer, or how the process ended."""
        server, self._server = self._running(), None
        try:
            reply = server.exchange(request, self.seconds + GRACE_SECONDS)
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
        return self._server if self._server is not None and self._server.is_ours else _Server()


@dataclass(frozen=True, slots=True)
class _Reply:
    header: dict[str, Any]
    tiles: list[Tile]


class _Server:
    """A decoding process that runs, and our end of the pipe to it.

    Raises:
        UserError: it does not start.
    """

    def __init__(self) -> None:
        self.is_ours = True
        try:
            self._connection, theirs = Pipe()
            with theirs:
                self._process = _start(theirs)
        except OSError as error:
            raise _not_started(error.strerror or str(error)) from error
        self._end_at_exit = weakref.finalize(self, _end, self._connection, self._process)
        _servers.add(self)
        try:
            ready = self._connection.poll(START_SECONDS) and self._connection.recv_bytes()
        except (EOFError, OSError):
            ready = False
        if not ready:
            raise _not_started(_told(self.end(patience=GRACE_SECONDS)))

    def exchange(self, request: Mapping[str, Any], seconds: float) -> _Reply:
        """Send a request and take the whole answer.

        Raises:
            TimeoutError: no answer began within `seconds`.
            EOFError, OSError: the process has ended.
        """
        self._connection.send_bytes(json.dumps(request).encode())
        if not self._connection.poll(seconds):
            raise TimeoutError
        header = json.loads(self._connection.recv_bytes())
        return _Reply(header, [self._tile(*shape) for shape in header.get("tiles", ())])

    def _tile(self, side: int, height: int, width: int) -> Tile:
        pixels = np.empty((3, side, side), dtype=np.uint8)
        self._connection.recv_bytes_into(pixels.reshape(-1).data)
        return Tile(pixels, height, width)

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
        # Held open here, it would keep the decoder running when its owner is killed.
        self._connection.close()
        self._process.poll()  # not our child, which this makes it note


def _start(connection: Connection) -> subprocess.Popen[bytes]:
    # In a session of its own: Ctrl-C and Ctrl-Z at the terminal are for the run, and a picture that is half
    # decoded must not be taken for a bad one.
    return subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, "-P", "-m", SERVER, str(connection.fileno())],
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


def _not_started(reason: str) -> UserError:
    return UserError(
        f"the process that decodes media did not start ({reason})",
        fix="see what it said above; there must be memory and a place in the process table for another Python",
    )


def _without_error(reply: _Reply) -> _Reply:
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
