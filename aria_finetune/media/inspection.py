"""What an image, a video or a document is, found out so that one on which a reader hangs or crashes is the only one lost.

Headers of plain images are read here, in microseconds; everything else happens in a process that can be killed.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aria_finetune.errors import MediaError
from aria_finetune.media.headers import read_header
from aria_finetune.media.images import ImageInfo, ImageLimits
from aria_finetune.media.isolation import Isolated, Reply, Wording
from aria_finetune.media.videos import VideoInfo, VideoLimits

if TYPE_CHECKING:
    from aria_finetune.media.documents import DocumentInfo, DocumentLimits

REMEMBERED_BYTES = 64 * 2**20
"""How much is remembered of files, the latest of them: eight bytes for each frame of a clip, and `_ENTRY_BYTES`."""

_ENTRY_BYTES = 2000


class Inspector(Isolated):
    """Looks into media, one at a time, in a process of its own; no step of it may take longer than `seconds`.

    What the process found out about a file is remembered until the file changes: a clip that many rows show is read
    once, and one that hangs is waited for once. A copy remembers nothing.
    """

    SERVER = "aria_finetune.media.inspection_process"
    WORDING = Wording(work="a step of looking into it", worker="the process looking into it", does="looks into media")

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__(seconds)
        self._memory = _Memory()

    def image(self, content: Path | bytes, limits: ImageLimits, *, decode: bool = False) -> ImageInfo:
        """What `probe_image` says of an image file or of its bytes; with `decode` it is decoded as well.

        Raises:
            MediaError: as `probe_image`, with `decode` as `open_image`; `media_unreadable` when it took too long or
                crashed the process.
            UserError: the process can't be started.
        """
        info = None if decode else read_header(content, limits)
        return info or ImageInfo(**self._look("image", content, limits, decode=decode).header)

    def video(self, content: Path | bytes, limits: VideoLimits, *, decode: bool = False) -> VideoInfo:
        """What `probe_video` says of a video file or of its bytes; with `decode` it is decoded to its last frame.

        Raises:
            MediaError: as `probe_video`, with `decode` as `read_frames`, and as `image`.
            UserError: the process can't be started.
        """
        if isinstance(content, bytes):
            # FFmpeg wants a file; it is ours, so that a process that crashes leaves none behind.
            with tempfile.NamedTemporaryFile(prefix="aria-finetune-") as file:
                file.write(content)
                file.flush()
                return self.video(Path(file.name), limits, decode=decode)
        reply = self._look("video", content, limits, decode=decode)
        (times,) = reply.arrays
        fields = {**reply.header, "notes": tuple(reply.header["notes"]), "times": tuple(times.tolist())}
        return VideoInfo(**fields)

    def document(
        self, content: Path | bytes, limits: DocumentLimits, *, page: int | None = None, decode: bool = False
    ) -> DocumentInfo:
        """What `probe_document` says of a PDF file or of its bytes.

        Args:
            content: the document.
            limits: what is accepted.
            page: a page that must be there, counted from 1.
            decode: draw this page, or every one where none is named, as a check.

        Raises:
            MediaError: as `probe_document` and `render_page`, and as `image`.
            UserError: the process can't be started.
        """
        # Not at the top: its library takes long to load, and few need it.
        from aria_finetune.media.documents import DocumentInfo  # noqa: PLC0415

        header = self._look("document", content, limits, decode=decode, page=page).header
        return DocumentInfo(header["pages"], tuple((width, height) for width, height in header["sizes"]))

    def document_text(self, path: Path, limits: DocumentLimits) -> str:
        """The text of all pages of a PDF, as `document_text` gives it.

        Raises:
            MediaError: as `probe_document`, and as `image`.
            UserError: the process can't be started.
        """
        from aria_finetune.media.documents import in_one  # noqa: PLC0415 (as above)

        return in_one(self.page_texts(path, limits))

    def page_texts(self, path: Path, limits: DocumentLimits) -> list[str]:
        """The text of each page of a PDF, as `page_texts` gives it.

        Raises:
            MediaError: as `probe_document`, and as `image`.
            UserError: the process can't be started.
        """
        return list(map(str, self._look("page_texts", path, limits, decode=False).header["texts"]))

    def _look(
        self, kind: str, content: Path | bytes, limits: ImageLimits | VideoLimits | DocumentLimits, **wishes: Any
    ) -> Reply:
        wanted = {"kind": kind, "limits": asdict(limits), **wishes}
        if isinstance(content, bytes):
            return self._ask(wanted, content)
        path = content.absolute()
        mark = _mark(path, kind, limits, *wishes.values())
        known = self._memory.get(mark)
        if known is None:
            known = self._answer({**wanted, "path": str(path)})
            self._memory.put(mark, known)
        if isinstance(known, Reply):
            return known
        raise MediaError(*known)

    def _answer(self, request: Mapping[str, Any]) -> _Answer:
        try:
            return self._ask(request)
        except MediaError as error:
            return error.reason, error.detail


_Answer = Reply | tuple[str, str]
"""What is known of a file: what it is, or the reason why it can't be used and its detail."""


class _Memory:
    """Answers by marks, the latest used of them; there is none for the mark None."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._bytes = 0

    def get(self, mark: Hashable) -> _Answer | None:
        if mark in self._answers:
            self._answers.move_to_end(mark)
        return self._answers.get(mark)

    def put(self, mark: Hashable, answer: _Answer) -> None:
        if mark is None or mark in self._answers:
            return
        self._answers[mark] = answer
        self._bytes += _bytes_of(answer)
        while self._bytes > REMEMBERED_BYTES:
            self._bytes -= _bytes_of(self._answers.popitem(last=False)[1])


def _bytes_of(answer: _Answer) -> int:
    return _ENTRY_BYTES + (sum(array.nbytes for array in answer.arrays) if isinstance(answer, Reply) else 0)


def _mark(path: Path, *asked: Hashable) -> Hashable:
    """What was asked about a file, and which state of it; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, *asked)
