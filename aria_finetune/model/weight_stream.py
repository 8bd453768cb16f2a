"""Weights of a checkpoint in the order in which they lie on the disk, in pieces, read by a thread that stays ahead.

While one piece is quantised the next is read, and never more than a few of them are in memory. Knows shards and rows.
Knows nothing of modules or of what becomes of a piece.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import HubCheckpoint

AHEAD = 4
"""Pieces that wait at most: with the one at work and the one being read, six of 17 MB for experts of the real Aria."""
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows (of the first dimension) of a tensor, from row `start` on, in memory of their own."""

    name: str
    start: int
    rows: torch.Tensor


def read_ahead(checkpoint: HubCheckpoint, heights: Mapping[str, int]) -> Iterator[Piece]:
    """All pieces of some tensors, file by file and within a file by their place in it.

    Args:
        checkpoint: where they are.
        heights: the tensors by their names on disk, and how many rows a piece has at most.

    Raises:
        UserError: a shard can't be read.
    """
    ready: queue.Queue[Piece | BaseException | None] = queue.Queue(AHEAD)
    enough = threading.Event()
    reader = threading.Thread(target=_read, args=(checkpoint, heights, ready, enough), daemon=True)
    reader.start()
    try:
        while (piece := ready.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        enough.set()
        reader.join()


def _read(
    checkpoint: HubCheckpoint,
    heights: Mapping[str, int],
    ready: queue.Queue[Piece | BaseException | None],
    enough: threading.Event,
) -> None:
    last: BaseException | None = None
    try:
        for piece in _pieces(checkpoint, heights):
            if not _put(piece, ready, enough):
                return
    except BaseException as error:  # noqa: BLE001 (told by the thread that waits for pieces)
        last = error
    _put(last, ready, enough)


def _put(
    item: Piece | BaseException | None, ready: queue.Queue[Piece | BaseException | None], enough: threading.Event
) -> bool:
    while not enough.is_set():
        with suppress(queue.Full):
            ready.put(item, timeout=_POLL_SECONDS)
            return True
    return False


def _pieces(checkpoint: HubCheckpoint, heights: Mapping[str, int]) -> Iterator[Piece]:
    for shard in checkpoint.shards:
        path = checkpoint.folder / shard
        try:
            with safe_open(path, "pt") as opened:
                for name in opened.offset_keys():
                    if name in heights:
                        yield from _pieces_of(name, opened.get_slice(name), heights[name])
        except (SafetensorError, OSError) as error:
            raise UserError(f"the shard can't be read ({error})", where=str(path), fix="download it again") from error


def _pieces_of(name: str, stored: object, height: int) -> Iterator[Piece]:
    rows = stored.get_shape()[0]  # type: ignore[attr-defined]
    for start in range(0, rows, height):
        # A copy, because what safetensors gives is a view of the file, which is only read when it is looked at.
        yield Piece(name, start, stored[start : start + height].clone())  # type: ignore[index]
