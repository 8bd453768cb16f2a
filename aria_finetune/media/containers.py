"""Opening a video file safely: which containers are read, which stream is taken, and whether the file is whole.

Decodes nothing. Knows nothing of frames or times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from aria_finetune.errors import MediaError
from aria_finetune.media.paths import require_regular_file
from aria_finetune.media.signatures import HEAD_BYTES, looks_like
from aria_finetune.media.signs_of_life import give_sign

_MIME_OF_FORMAT = {
    "mov,mp4,m4a,3gp,3g2,mj2": "video/mp4",
    "matroska,webm": "video/x-matroska",
    "avi": "video/x-msvideo",
    "mpegts": "video/mp2t",
    "mpeg": "video/mpeg",
    "mpegvideo": "video/mpeg",
    "m4v": "video/mpeg",
    "flv": "video/x-flv",
    "asf": "video/x-ms-asf",
    "ogg": "video/ogg",
    "h264": "video/h264",
    "hevc": "video/h265",
    "ivf": "video/x-ivf",
    "gif": "image/gif",
    "apng": "image/apng",
}
_AUDIO_FORMATS = ("mp3", "wav", "flac", "aac")
_WEBM_CODECS = frozenset({"vp8", "vp9", "av1", "libdav1d", "libaom-av1", "libvpx", "libvpx-vp9"})

# A playlist makes FFmpeg open other files and addresses: only these demuxers, and plain files, are allowed.
_OPEN_OPTIONS = {
    "format_whitelist": ",".join((*_MIME_OF_FORMAT, *_AUDIO_FORMATS)),
    "protocol_whitelist": "file",
}


@contextmanager
def open_video(path: Path, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and its first stream of moving pictures; both are closed at the end of the block.

    Whatever FFmpeg raises inside the block comes out as `media_unreadable`.

    Raises:
        MediaError: `media_missing`; `media_unreadable`; `no_video_stream`; `media_too_large` when a frame has
            more than `max_pixels` pixels.
    """
    require_regular_file(path)
    try:
        # An absolute path, so that no part of it can be taken for a protocol.
        with av.open(str(path.absolute()), "r", options=dict(_OPEN_OPTIONS), metadata_errors="replace") as container:
            stream = _first_stream(container, max_pixels)
            _refuse_cut_index(container, stream)
            yield container, stream
    except av.error.FFmpegError as error:
        with path.open("rb") as file:
            kind = looks_like(file.read(HEAD_BYTES))
        raise MediaError("media_unreadable", f"damaged, or not a video; it looks like: {kind}") from error


def moving_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams, without the cover pictures of music files."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def demux(container: InputContainer, *streams: VideoStream) -> Iterator[Packet[Any]]:
    """The packets of the given streams, or of all, each stream's end marked by an empty packet."""
    try:
        for packet in container.demux(*streams):
            give_sign()
            yield packet
    except IndexError:
        # PyAV (18.1) marks the ends last and trips over streams that appeared in mid-file; ours come before those.
        return


def mime_type(container: InputContainer, stream: VideoStream) -> str:
    """The type of the container, from its bytes."""
    mime = _MIME_OF_FORMAT.get(container.format.name, "application/octet-stream")
    if mime == "video/mp4" and container.metadata.get("major_brand", "").strip() == "qt":
        return "video/quicktime"
    if mime == "video/x-matroska" and stream.codec_context.name in _WEBM_CODECS:
        return "video/webm"
    return mime


def lacks_frame_index(container: InputContainer) -> bool:
    """Whether the container lists no frames, so that a cut shows only in where its packets end."""
    return container.format.name == "matroska,webm"


def refuse_short_file(container: InputContainer, end: Fraction) -> None:
    """Refuse a Matroska or WebM file whose packets of all streams end, at `end` seconds, long before it says.

    Raises:
        MediaError: `media_unreadable`.
    """
    if not lacks_frame_index(container) or not container.duration:
        return
    promised = Fraction(container.duration, av.time_base)
    if promised - end > max(Fraction(1), promised / 20):
        raise MediaError(
            "media_unreadable",
            f"the file is cut: it says {float(promised):.1f} s and ends at {float(end):.1f} s; remux it to keep the rest",
        )


def _first_stream(container: InputContainer, max_pixels: int) -> VideoStream:
    streams = moving_streams(container)
    kinds = sorted({stream.type for stream in container.streams})
    if not streams and not {"audio", "video", "subtitle"}.intersection(kinds):
        raise MediaError("media_unreadable", "no stream can be made out: its header is damaged or cut off")
    if not streams:
        raise MediaError("no_video_stream", f"no moving pictures, only {', '.join(kinds)}")
    stream = streams[0]
    # PyAV leaves it None when FFmpeg has no decoder for the stream.
    context = getattr(stream, "codec_context", None)
    if context is None:
        raise MediaError("media_unreadable", "there is no decoder for its video codec")
    if context.width * context.height > max_pixels:
        raise MediaError(
            "media_too_large", f"frames of {context.width}x{context.height}; the limit is {max_pixels} pixels"
        )
    # The frame size may change in mid-stream: hold the decoder to the limit as well.
    context.options = {"max_pixels": str(max_pixels)}
    return stream


def _refuse_cut_index(container: InputContainer, stream: VideoStream) -> None:
    if any(entry.pos + entry.size > container.size for entry in stream.index_entries):
        raise MediaError("media_unreadable", "the file is cut: its index leads past its end")
