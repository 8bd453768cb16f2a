"""Looking at the media a draft refers to before any of them is kept. Writes nothing."""

from __future__ import annotations

import mimetypes
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from aria_finetune.conversion.options import Verification
from aria_finetune.data_formats.record import MediaReference, PartType
from aria_finetune.errors import MediaError
from aria_finetune.media.images import ImageLimits, open_image, probe_image
from aria_finetune.media.paths import decode_data_uri, is_data_uri, resolve_media
from aria_finetune.media.videos import VideoInfo, VideoLimits, choose_times, probe_video, read_frames

REMEMBERED_FILES = 4096
"""Files whose check is remembered, for sources that show one file in many records."""

DECODED_PIXELS = 64_000_000
"""How much of one clip is held in memory at a time when it is decoded as a check."""

_UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class CheckedMedia:
    """A medium that may be kept: where its bytes are, its type, pixels as shown, frames, and seconds.

    Width and height are 0 where the verification did not look into the file.
    """

    content: Path | bytes
    mime: str
    width: int = 0
    height: int = 0
    frames: int | None = None
    duration: float | None = None


class MediaChecker:
    """Finds the files of a source below its roots and looks at each as far as `verify` asks."""

    def __init__(self, roots: Sequence[Path], verify: Verification, max_pixels: int) -> None:
        self._roots = tuple(roots)
        self._verify = verify
        self._image_limits = ImageLimits(max_pixels=max_pixels)
        self._video_limits = VideoLimits(max_pixels=min(max_pixels, VideoLimits().max_pixels))
        self._of_file = lru_cache(REMEMBERED_FILES)(self._check_file)

    def check(self, medium: MediaReference) -> CheckedMedia:
        """Find the medium and look at it.

        Raises:
            MediaError: it is missing, outside the roots, remote, damaged, or beyond the limits.
        """
        if medium.kind not in {"image", "video"}:
            raise MediaError("unsupported_modality", f"a {medium.kind} can't be read")
        if is_data_uri(medium.reference):
            return self._check_bytes(decode_data_uri(medium.reference), medium.kind)
        return self._of_file(resolve_media(medium.reference, self._roots), medium.kind)

    def _check_file(self, path: Path, kind: PartType) -> CheckedMedia:
        if self._verify in {"header", "decode"}:
            return self._look_into_image(path) if kind == "image" else self._look_into_video(path)
        if self._verify == "stat" and path.stat().st_size == 0:
            raise MediaError("media_unreadable", f"{path.name} is empty (0 bytes)")
        return CheckedMedia(path, mimetypes.guess_type(path.name)[0] or _UNKNOWN_TYPE)

    def _check_bytes(self, content: bytes, kind: PartType) -> CheckedMedia:
        if kind == "image":
            return self._look_into_image(content)
        with tempfile.NamedTemporaryFile(prefix="aria-finetune-") as file:
            file.write(content)
            file.flush()
            seen = self._look_into_video(Path(file.name))
        return replace(seen, content=content)

    def _look_into_image(self, content: Path | bytes) -> CheckedMedia:
        image = probe_image(content, self._image_limits)
        if self._verify == "decode":
            open_image(content, self._image_limits)
        return CheckedMedia(content, image.mime, image.width, image.height, image.frames)

    def _look_into_video(self, path: Path) -> CheckedMedia:
        video = probe_video(path, self._video_limits)
        if self._verify == "decode":
            read_frames(path, _frames_to_decode(video), self._video_limits)
        return CheckedMedia(path, video.mime, video.width, video.height, video.frames, video.duration)


def _frames_to_decode(video: VideoInfo) -> list[float]:
    """A spread of frames with the last one, so that decoding them goes through the whole clip."""
    count = max(1, min(32, DECODED_PIXELS // (video.width * video.height)))
    return sorted({*choose_times(video.times, count), video.times[-1]})
