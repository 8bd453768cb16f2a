"""The decoded frames of a stream, one by one, and each as an upright 8-bit RGB picture.

Does not know which frames are wanted, nor when a file may be opened.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from aria_finetune.media.containers import demux
from aria_finetune.media.images import flatten

# (a, b, c, d) of a display matrix, which shows the stored point (p, q) at (a p + c q, b p + d q), y downwards.
_TURN_OF_MATRIX = {
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
_DEGREES = {None: 0, Image.Transpose.ROTATE_90: 90, Image.Transpose.ROTATE_180: 180, Image.Transpose.ROTATE_270: 270}
_SIDES_SWAPPED = {
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
}
_MATRIX_FORMAT = "=9i"
# For a stream that carries neither times nor a rate; FFmpeg guesses the same.
_DEFAULT_RATE = Fraction(25)


class Decoded(NamedTuple):
    """A frame shown at `tick` of the stream's time base; `damaged` when it builds on data that is."""

    tick: int
    frame: VideoFrame
    damaged: bool


def has_presentation_times(container: InputContainer) -> bool:
    """Whether the container says when frames are shown; AVI knows only the order in which they are decoded."""
    return container.format.name != "avi"


def decode(container: InputContainer, stream: VideoStream) -> Iterator[Decoded]:
    """Decode a stream from where it stands, in the order of presentation.

    Data that can't be decoded is passed over, and what follows is marked as damaged up to the next key frame. A
    stream without any times is given them from its frame rate.
    """
    by_pts = has_presentation_times(container)
    damaged = False
    untimed = 0
    waiting: deque[int] = deque()
    for packet in demux(container, stream):
        if not by_pts and packet.size and packet.dts is not None:
            waiting.append(packet.dts)
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged = True
            continue
        for frame in frames:
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            # Frames leave the decoder in the order they are shown, so the next takes the earliest free place.
            tick = frame.pts if by_pts else (waiting.popleft() if waiting else None)
            if tick is None:
                tick = _tick_of_index(stream, untimed)
                untimed += 1
            yield Decoded(tick, frame, damaged)


def _tick_of_index(stream: VideoStream, index: int) -> int:
    rate = stream.average_rate or stream.guessed_rate or _DEFAULT_RATE
    return round(index / rate / (stream.time_base or Fraction(1, av.time_base)))


def upright(frame: VideoFrame) -> Image.Image:
    """The frame as it is meant to be seen: turned by its display matrix, transparency laid over white.

    Returns:
        An 8-bit RGB picture; deeper samples are reduced, and the frame's own colour matrix is used.
    """
    if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
        picture = flatten(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = _turn(frame)
    return picture if turn is None else picture.transpose(turn)


def shown_size(frame: VideoFrame) -> tuple[int, int]:
    """Width and height in pixels of what `upright` returns."""
    return (frame.height, frame.width) if _turn(frame) in _SIDES_SWAPPED else (frame.width, frame.height)


def shown_rotation(frame: VideoFrame) -> int:
    """Degrees counter-clockwise that `upright` turns the frame by: 0, 90, 180 or 270, and 0 if it mirrors."""
    return _DEGREES.get(_turn(frame), 0)


def turn_notes(frame: VideoFrame) -> list[str]:
    """What is unusual about how the frame is to be turned."""
    if _turn(frame) not in _DEGREES:
        return ["the stream is mirrored"]
    if _turn(frame) is None and frame.rotation % 360:
        return [f"turned by {frame.rotation} degrees, not by quarter turns: shown as stored"]
    return []


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d, *_ = struct.unpack(_MATRIX_FORMAT, bytes(matrix))
    scale = math.hypot(a, b) or 1.0
    return _TURN_OF_MATRIX.get((round(a / scale), round(b / scale), round(c / scale), round(d / scale)))
