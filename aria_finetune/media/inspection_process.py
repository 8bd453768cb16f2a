"""The process that looks into media, so that a reader which hangs or crashes takes nobody else along.

Started by `aria_finetune.media.inspection` and by nobody else. Keeps nothing from one medium to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from aria_finetune.errors import MediaError
from aria_finetune.media.images import ImageInfo, ImageLimits, open_image, probe_image
from aria_finetune.media.isolated_process import Answer, main
from aria_finetune.media.signs_of_life import give_sign
from aria_finetune.media.videos import VideoInfo, VideoLimits, choose_times, probe_video, read_frames

DECODED_PIXELS = 64_000_000
"""How much of one clip is held in memory at a time when it is decoded."""

_MOST_FRAMES = 32
_PAGE_SIDE = 980


def answer(request: Mapping[str, Any], content: bytes | None) -> Answer:
    """Look into a medium.

    A request has `kind`, `decode`, `limits` (the fields of the limits of that kind) and `path`, absolute, where the
    medium did not come as bytes; for a document also `page`. The answer has the fields of `ImageInfo`, of
    `DocumentInfo`, or of `VideoInfo` with the times as an array; of the kind `page_texts` it has `texts`.

    Raises:
        MediaError: as `probe_image` and its like, with `decode` as `open_image` and its like.
    """
    source = Path(request["path"]) if content is None else content
    limits, decode = request["limits"], request["decode"]
    if request["kind"] == "image":
        return _image(source, ImageLimits(**limits), decode=decode)
    if request["kind"] == "page_texts":
        return _page_texts(source, limits)
    if request["kind"] == "document":
        return _document(source, limits, request["page"], decode=decode)
    return _video(Path(request["path"]), VideoLimits(**limits), decode=decode)


def _image(source: Path | bytes, limits: ImageLimits, *, decode: bool) -> Answer:
    image = probe_image(source, limits)
    if decode:
        open_image(source, limits)
    return _described(image), ()


def _video(path: Path, limits: VideoLimits, *, decode: bool) -> Answer:
    video = probe_video(path, limits)
    if decode:
        read_frames(path, _frames_to_decode(video), limits)
    described = _described(video)
    return described, [np.array(described.pop("times"))]


def _document(source: Path | bytes, limits: Mapping[str, Any], page: int | None, *, decode: bool) -> Answer:
    # Not at the top: its library takes long to load, and few need it.
    from aria_finetune.media.documents import DocumentLimits, probe_document, render_page  # noqa: PLC0415

    accepted = DocumentLimits(**limits)
    document = probe_document(source, accepted)
    if page is not None and not 1 <= page <= document.pages:
        raise MediaError("media_missing", f"there is no page {page} in a document of {document.pages}")
    if decode:
        for number in [page] if page is not None else range(1, document.pages + 1):
            render_page(source, number, _PAGE_SIDE, accepted)
            give_sign()
    return {"pages": document.pages, "sizes": document.sizes}, ()


def _page_texts(source: Path | bytes, limits: Mapping[str, Any]) -> Answer:
    from aria_finetune.media.documents import DocumentLimits, page_texts  # noqa: PLC0415

    return {"texts": page_texts(source, DocumentLimits(**limits))}, ()


def _described(info: ImageInfo | VideoInfo) -> dict[str, Any]:
    return {field.name: getattr(info, field.name) for field in fields(info)}


def _frames_to_decode(video: VideoInfo) -> list[float]:
    """A spread of frames with the last one, so that decoding them goes through the whole clip."""
    count = max(1, min(_MOST_FRAMES, DECODED_PIXELS // (video.width * video.height)))
    return sorted({*choose_times(video.times, count), video.times[-1]})


if __name__ == "__main__":
    main(answer, deed="look into it", patient=True)
