"""The process that decodes media, so that a decoder which hangs or crashes takes nobody else along.

Started by `aria_finetune.data.decoding` and by nobody else. It reads one request at a time, a JSON object, and
answers with a JSON object and the pixels of each tile. Knows neither rows nor torch, keeps nothing from one medium
to the next but hashes of files, and ends when the other side is gone. A deadline is the kernel's: SIGALRM ends the process
wherever it is, in C code too, and also when nobody is left to kill it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aria_finetune.data.tiles import Tile, fit_tile, make_tiles
from aria_finetune.errors import MediaError
from aria_finetune.media.images import ImageLimits, open_image
from aria_finetune.media.videos import VideoLimits, read_frames
from aria_finetune.provenance import hash_file
from aria_finetune.redaction import redact_streams

READY = b"ready"
HASHED_BYTES = 64 * 2**20
"""Files above are not compared with their hash: of a long film a few frames are read, and all of it would have to be."""

REMEMBERED_HASHES = 65_536

Answer = tuple[dict[str, Any], list[Tile]]


def main() -> None:
    """Serve the connection whose file descriptor is the only argument."""
    _prepare_process()
    connection: Connection = Connection(int(sys.argv[1]))
    try:
        connection.send_bytes(READY)
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The other side is gone, which is the usual end; there is nothing to tidy up.
        os._exit(0)


def serve(connection: Connection) -> None:
    """Answer requests until the other side is gone.

    A request has `seconds`, `path` (real and absolute), `sha256` (of the file's bytes; may be empty), `limits` (the
    fields of `ImageLimits` or `VideoLimits`) and `tile`; for an image also `split`, for a video `times`. The answer is `{"error": [reason, detail]}` or
    `{"size": [width, height], "tiles": [[side, height, width], ...]}` (`size` is the image's, null for a video),
    and then one message of 3 * side * side bytes for each tile.

    Raises:
        EOFError, BrokenPipeError, ConnectionResetError: the other side is gone.
    """
    while True:
        request = json.loads(connection.recv_bytes())
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        header, tiles = _answer(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps(header).encode())
        for tile in tiles:
            connection.send_bytes(tile.pixels.reshape(-1).data)


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


def _answer(request: Mapping[str, Any]) -> Answer:
    try:
        return _decode(request)
    except MediaError as error:
        return {"error": [error.reason, error.detail]}, []
    except MemoryError:
        return {"error": ["media_unreadable", "there is not enough memory to decode it"]}, []


def _decode(request: Mapping[str, Any]) -> Answer:
    path = _unlinked(request["path"])
    if "times" in request:
        frames = read_frames(path, request["times"], VideoLimits(**request["limits"]))
        size, tiles = None, [fit_tile(frame, request["tile"]) for frame in frames]
    else:
        image = open_image(path, ImageLimits(**request["limits"]))
        size, tiles = image.size, make_tiles(image, request["tile"], split=request["split"])
    _require_bytes(path, request["sha256"])
    return {"size": size, "tiles": [(tile.pixels.shape[-1], tile.height, tile.width) for tile in tiles]}, tiles


def _unlinked(path: str) -> Path:
    """Planned paths are real ones: a link on the way has come since, and may lead out of the media root."""
    if os.path.realpath(path) != path:
        raise MediaError("media_unsafe_path", "a link has come into its path since the row was planned")
    return Path(path)


def _require_bytes(path: Path, sha256: str) -> None:
    """Compare a file with the hash it is to have; after decoding, which knows better what is wrong with a broken one."""
    if not sha256:
        return
    try:
        status = path.stat()
        if status.st_size > HASHED_BYTES or _hash(path, status.st_ino, status.st_size, status.st_mtime_ns) == sha256:
            return
    except OSError as error:
        raise MediaError("media_unreadable", f"{path.name} can't be read: {error.strerror}") from error
    raise MediaError("media_changed", "no longer the file that was converted")


@lru_cache(REMEMBERED_HASHES)
def _hash(path: Path, _inode: int, _size: int, _modified: int) -> str:
    """A clip shown in many rows, or epoch after epoch, is read whole once."""
    return hash_file(path)


if __name__ == "__main__":
    main()
