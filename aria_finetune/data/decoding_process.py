"""The process that decodes media, so that a decoder which hangs or crashes takes nobody else along.

Started by `aria_finetune.data.decoding` and by nobody else. Knows neither rows nor torch, and keeps nothing from one
medium to the next but hashes of files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from aria_finetune.data.tiles import Tile, fit_tile, make_tiles
from aria_finetune.errors import MediaError
from aria_finetune.media.images import ImageLimits, open_image
from aria_finetune.media.isolated_process import Answer, main
from aria_finetune.media.signs_of_life import give_sign
from aria_finetune.media.videos import VideoLimits, read_frames
from aria_finetune.provenance import hash_file

HASHED_BYTES = 64 * 2**20
"""Files above are not compared with their hash: of a long film a few frames are read, and all of it would have to be."""

REMEMBERED_HASHES = 65_536


def answer(request: Mapping[str, Any], content: bytes | None) -> Answer:
    """Decode a file, or an image whose bytes came along, into tiles.

    A request has `path` (real and absolute), `sha256` (of the file's bytes; may be empty), `limits` (the fields of
    `ImageLimits` or `VideoLimits`) and `tile`; for an image also `split`, for a video `times`, for a document `pages` in
    place of limits. The answer has `size`, [width, height] of the image or null for anything else, `extents`, [height, width] of the picture in each tile, and
    the pixels of each tile, (3, side, side).

    Raises:
        MediaError: as `open_image` and `read_frames`; `media_unsafe_path`, `media_changed`.
    """
    if content is not None:
        return _image(request, content)
    path = _unlinked(request["path"])
    if "times" in request:
        frames = read_frames(path, request["times"], VideoLimits(**request["limits"]))
        tiles = [fit_tile(frame, request["tile"]) for frame in frames]
    elif "pages" in request:
        tiles = [_page(path, page, request["tile"]) for page in request["pages"]]
    else:
        return _image(request, path)
    _require_bytes(path, request["sha256"])
    return _described(None, tiles)


def _image(request: Mapping[str, Any], source: Path | bytes) -> Answer:
    image = open_image(source, ImageLimits(**request["limits"]))
    tiles = make_tiles(image, request["tile"], split=request["split"])
    if isinstance(source, Path):
        _require_bytes(source, request["sha256"])
    elif request["sha256"] not in {"", hashlib.sha256(source).hexdigest()}:
        raise MediaError("media_changed", "no longer the picture that was converted")
    return _described(image.size, tiles)


def _described(size: tuple[int, int] | None, tiles: Sequence[Tile]) -> Answer:
    extents = [(tile.height, tile.width) for tile in tiles]
    return {"size": size, "extents": extents}, [tile.pixels for tile in tiles]


def _page(path: Path, page: int, tile: int) -> Tile:
    # Not at the top: its library takes long to load, and few need it.
    from aria_finetune.media.documents import render_page  # noqa: PLC0415

    drawn = fit_tile(render_page(path, page, tile), tile)
    give_sign()
    return drawn


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
    main(answer, deed="decode it")
