"""Videos by presentation time: which frames there are, which of them to take, and their pictures.

Headers are not believed: frames are counted by demuxing, and everything goes by time and never by index, so
variable frame rates and edit lists come out right. High dynamic range is not tone-mapped. Does not know
where files come from, nor what a model does with frames.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from aria_finetune.errors import MediaError
from aria_finetune.media.containers import (
    demux,
    lacks_frame_index,
    mime_type,
    moving_streams,
    open_video,
    refuse_short_file,
)
from aria_finetune.media.frames import decode, has_presentation_times, shown_rotation, shown_size, turn_notes, upright

# Less than any real gap between frames, more than the rounding of a time held as a float.
_TIME_NOISE_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What is accepted: pixels of one frame, judged before any is decoded, and the number of frames."""

    max_pixels: int = 36_000_000
    max_frames: int = 2_000_000


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a clip holds.

    `width` and `height` are pixels as shown, after turning the stored frame by `rotation` degrees
    counter-clockwise (0, 90, 180 or 270; 0 where `notes` says mirrored). `frames` counts what can be shown and
    `times` says when, in seconds after the first, sorted; `duration` is the seconds to the end of the last.
    """

    width: int
    height: int
    rotation: int
    frames: int
    duration: float
    times: tuple[float, ...]
    mime: str
    notes: tuple[str, ...]


def probe_video(path: Path, limits: VideoLimits) -> VideoInfo:
    """Find the frames of a clip by demuxing it; only the first one is decoded, for its rotation.

    A stream whose packets don't tell the time of each frame is decoded as a whole.

    Raises:
        MediaError: `media_missing`; `media_unreadable` for what is no video, can't be decoded or is cut;
            `no_video_stream`; `zero_frames`; `media_too_large`.
    """
    with open_video(path, limits.max_pixels) as (container, stream):
        packets, first = _survey(container, stream, limits)
        shown = _from_first_key(packets)
        ticks = sorted(packet.tick for packet in shown if packet.tick is not None)
        unsure = _times_are_unsure(container, stream, ticks, shown, first)
        time_base = stream.time_base or Fraction(1, av.time_base)
        promised, mime = stream.frames, mime_type(container, stream)
        notes = _stream_notes(container, stream)
    if unsure:
        ticks = _ticks_by_decoding(path, limits)
    if len(packets) > len(shown):
        notes.append(f"{len(packets) - len(shown)} frames before the first key frame can't be decoded")
    if promised and promised != len(ticks):
        notes.append(f"the header promises {promised} frames, {len(ticks)} can be shown")
    last_ticks = max(shown, key=lambda packet: packet.tick or 0).duration or _mean_gap(ticks)
    width, height = shown_size(first)
    return VideoInfo(
        width=width,
        height=height,
        rotation=shown_rotation(first),
        frames=len(ticks),
        duration=float((ticks[-1] - ticks[0] + last_ticks) * time_base),
        times=tuple(float((tick - ticks[0]) * time_base) for tick in ticks),
        mime=mime,
        notes=(*notes, *turn_notes(first)),
    )


def choose_times(
    times: Sequence[float], num_frames: int, start: float | None = None, end: float | None = None
) -> list[float]:
    """Choose `num_frames` of the sorted presentation `times`, spread over the whole clip or over [start, end).

    The span is cut into `num_frames` equal stretches of time, and each gives the frame on show at its middle.
    So the choice reaches into the tail: of 15 frames, 8 are 0, 2, ... 14, where steps of the whole number
    15 // 8 stop half way. The last frame counts as shown for the mean gap between frames; a lone frame, which
    has no gap, for as long as it is asked for. Where one long frame is on show at several middles its
    neighbours are taken too, so that the result always has min(num_frames, frames in the span) members.

    Args:
        times: seconds after the first frame, sorted, as in `VideoInfo.times`.
        num_frames: how many to choose, at least 1.
        start: seconds; the frame on show at that moment is in the span. None is the beginning.
        end: seconds; None, or anything past the end, is the end of the clip.

    Raises:
        MediaError: `zero_frames` when nothing is on show between `start` and `end`.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; at least 1 is needed")
    if not times:
        raise MediaError("zero_frames", "the clip has no frame")
    clip_end = times[-1] + (_mean_gap(times) if len(times) > 1 else math.inf)
    begin = times[0] if start is None else max(start, times[0])
    finish = clip_end if end is None else min(end, clip_end)
    if not begin < finish - _TIME_NOISE_SECONDS:
        raise MediaError("zero_frames", f"nothing is on show from {start} to {end} s of a clip of {clip_end:g} s")
    low = _index_at(times, begin)
    high = max(low + 1, bisect_left(times, finish - _TIME_NOISE_SECONDS))
    if high - low <= num_frames:
        return list(times[low:high])
    stretch = (finish - begin) / num_frames
    middles = (_index_at(times, begin + (place + 0.5) * stretch) for place in range(num_frames))
    return [times[index] for index in _distinct(middles, num_frames, high)]


def read_frames(path: Path, times: Sequence[float], limits: VideoLimits) -> list[Image.Image]:
    """Decode the frames presented at `times`, upright, 8-bit RGB, in the order of `times` and never resized.

    Args:
        path: a video file.
        times: members of `VideoInfo.times`.
        limits: see `VideoLimits`.

    Raises:
        MediaError: as `probe_video`; `media_unreadable` also when a wanted frame can't be decoded, or builds
            on data that is damaged.
    """
    if not times:
        return []
    pictures: dict[int, Image.Image] = {}
    with open_video(path, limits.max_pixels) as (container, stream):
        stream.thread_type = "AUTO"
        time_base = stream.time_base or Fraction(1, av.time_base)
        ticks = [round(time / time_base) for time in times]
        missing = set(ticks)
        first: int | None = None
        for decoded in decode(container, stream):
            first = decoded.tick if first is None else first
            tick = decoded.tick - first
            if tick not in missing:
                continue
            if decoded.damaged:
                raise MediaError("media_unreadable", f"the frame at {tick * float(time_base):.3f} s is damaged")
            pictures[tick] = upright(decoded.frame)
            missing.remove(tick)
            if not missing:
                break
    if missing:
        raise MediaError("media_unreadable", f"no frame at {min(missing) * float(time_base):.3f} s can be decoded")
    return [pictures[tick] for tick in ticks]


def timestamp(seconds: float) -> str:
    """`[MM:SS]`, rounded down; minutes go on past 59."""
    minutes, rest = divmod(int(seconds), 60)
    return f"[{minutes:02d}:{rest:02d}]"


class _Displayed(NamedTuple):
    """A packet that shows a frame at `tick`, for `duration` ticks of the stream's time base."""

    tick: int | None
    duration: int
    is_key: bool
    is_corrupt: bool


def _survey(container: InputContainer, stream: VideoStream, limits: VideoLimits) -> tuple[list[_Displayed], VideoFrame]:
    by_pts = has_presentation_times(container)
    displayed: list[_Displayed] = []
    first: VideoFrame | None = None
    end = Fraction(0)
    # Where the file as a whole ends shows only in all of its streams.
    for packet in demux(container) if lacks_frame_index(container) else demux(container, stream):
        end = max(end, _end_of(packet))
        if packet.stream_index != stream.index:
            continue
        first = first or _first_frame(packet)
        if packet.size and not packet.is_discard and not _is_hidden(packet, stream):
            tick = packet.pts if by_pts else packet.dts
            displayed.append(_Displayed(tick, packet.duration or 0, packet.is_keyframe, packet.is_corrupt))
        if len(displayed) > limits.max_frames:
            raise MediaError("media_too_large", f"more than {limits.max_frames} frames")
    refuse_short_file(container, end)
    if not displayed:
        raise MediaError("zero_frames", "the video stream has no frame")
    if displayed[-1].is_corrupt:
        raise MediaError("media_unreadable", "the file is cut: its last frame is incomplete")
    if first is None:
        raise MediaError("media_unreadable", "no frame of it can be decoded")
    return displayed, first


def _end_of(packet: Packet[Any]) -> Fraction:
    if packet.pts is None or not packet.time_base:
        return Fraction(0)
    return (packet.pts + (packet.duration or 0)) * packet.time_base


def _first_frame(packet: Packet[Any]) -> VideoFrame | None:
    try:
        return next(iter(packet.decode()), None)
    except av.error.FFmpegError:
        # A recording may begin in the middle of a picture; the next one may be sound.
        return None


def _is_hidden(packet: Packet[Any], stream: VideoStream) -> bool:
    # RFC 6386, section 9.1: bit 4 of a VP8 frame says whether it is shown or only referred to.
    return stream.codec_context.name in {"vp8", "libvpx"} and not bytes(packet)[0] >> 4 & 1


def _from_first_key(packets: list[_Displayed]) -> list[_Displayed]:
    begin = next((index for index, packet in enumerate(packets) if packet.is_key), 0)
    start = packets[begin].tick
    if start is None:
        return packets[begin:]
    return [packet for packet in packets[begin:] if packet.tick is None or packet.tick >= start]


def _times_are_unsure(
    container: InputContainer, stream: VideoStream, ticks: list[int], shown: list[_Displayed], first: VideoFrame
) -> bool:
    if len(set(ticks)) != len(shown):
        return True
    if has_presentation_times(container):
        return first.pts != ticks[0]
    # In AVI, MPEG-4 often packs two frames into one packet.
    return stream.codec_context.name == "mpeg4"


def _ticks_by_decoding(path: Path, limits: VideoLimits) -> list[int]:
    ticks: set[int] = set()
    with open_video(path, limits.max_pixels) as (container, stream):
        stream.thread_type = "AUTO"
        for decoded in decode(container, stream):
            ticks.add(decoded.tick)
            if len(ticks) > limits.max_frames:
                raise MediaError("media_too_large", f"more than {limits.max_frames} frames")
    if not ticks:
        raise MediaError("media_unreadable", "no frame of it can be decoded")
    return sorted(ticks)


def _stream_notes(container: InputContainer, stream: VideoStream) -> list[str]:
    notes = []
    count = len(moving_streams(container))
    if count > 1:
        notes.append(f"{count} video streams, the first is used")
    ratio = stream.sample_aspect_ratio
    if ratio and ratio != 1:
        notes.append(f"pixels are {ratio.numerator}:{ratio.denominator}, not square: shown as stored")
    return notes


def _mean_gap(times: Sequence[float]) -> float:
    return (times[-1] - times[0]) / max(len(times) - 1, 1)


def _index_at(times: Sequence[float], moment: float) -> int:
    return bisect_right(times, moment + _TIME_NOISE_SECONDS) - 1


def _distinct(indices: Iterable[int], count: int, high: int) -> list[int]:
    """Push equal neighbours of `count` sorted indices apart, all of them staying below `high`."""
    chosen: list[int] = []
    for place, index in enumerate(indices):
        after_last = chosen[-1] + 1 if chosen else index
        # Room is left for those still to come.
        chosen.append(min(max(index, after_last), high - count + place))
    return chosen
