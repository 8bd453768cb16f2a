"""Opening one PDF document: how many pages it has, what they look like upright as 8-bit RGB, and the text they hold.

The file may be hostile. Pages, and pictures on them, are measured before anything is drawn, a document that is cut is
refused rather than half shown, and PDFium, which does the work, is entered by one thread at a time. Scripts in
documents are never run. Does not know where files come from, nor what a model does with pages.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pypdfium2 as pdfium
from PIL import Image
from pypdfium2 import raw as pdfium_c

from aria_finetune.errors import MediaError
from aria_finetune.media.paths import require_regular_file
from aria_finetune.media.signatures import looks_like

# ISO 32000-1, annex H.3: the header may stand anywhere in the first 1024 bytes, the end mark in the last.
_SEARCHED_BYTES = 1024

# PDFium says with these where a line was broken inside a word, and leaves out the line break.
_BROKEN_WORD = ("\x02", "\ufffe")
_TEXT_MARKS = dict.fromkeys(range(32)) | dict.fromkeys(map(ord, _BROKEN_WORD), "-\n") | {9: "\t", 10: "\n", 13: "\n"}

# PDFium is not safe for several threads, whatever documents they are at.
_PDFIUM = threading.Lock()


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    """What is accepted: pages in all, and pixels of one drawn page or of one picture on it."""

    max_pages: int = 1000
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = DocumentLimits()


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """The number of pages, and width and height of each in points as shown (after rotation)."""

    pages: int
    sizes: tuple[tuple[float, float], ...]


def probe_document(source: Path | bytes, limits: DocumentLimits = DEFAULT_LIMITS) -> DocumentInfo:
    """Count and measure the pages of a PDF file or of its bytes; nothing is drawn.

    Raises:
        MediaError: `media_missing`; `media_unreadable` for what is damaged, cut, no PDF, has no page or needs a
            password; `media_too_large` for more pages than the limit.
    """
    with _opened(source, limits) as document:
        sizes = tuple(_checked_size(document.get_page_size(index), index + 1) for index in range(len(document)))
        return DocumentInfo(pages=len(sizes), sizes=sizes)


def render_page(
    source: Path | bytes, page: int, longest_side: int, limits: DocumentLimits = DEFAULT_LIMITS
) -> Image.Image:
    """Draw a page, upright and over white, as 8-bit RGB, so that its longer side has `longest_side` pixels.

    Rotation of the page is applied; annotations and filled-in forms are drawn as a reader of PDF files shows them.

    Args:
        source: a PDF file or its bytes.
        page: counted from 1.
        longest_side: in pixels, at least 1.
        limits: see `DocumentLimits`.

    Raises:
        MediaError: as `probe_document`; `media_missing` also for a page that is not there, `media_too_large` also
            for too many pixels.
    """
    if longest_side < 1:
        raise ValueError(f"longest_side is {longest_side}; at least 1 is needed")
    with _opened(source, limits) as document:
        document.init_forms()  # before any page is loaded, or filled-in fields stay empty
        loaded = _page(document, page)
        width, height = _checked_size(loaded.get_size(), page)
        # A hair less than the exact scale: PDFium rounds up, and must not round to one pixel more.
        scale = longest_side / max(width, height) * (1 - 1e-9)
        _check_pixels(math.ceil(width * scale), math.ceil(height * scale), f"page {page} would have", limits)
        for picture in loaded.get_objects(filter=[pdfium_c.FPDF_PAGEOBJ_IMAGE]):
            across, down = picture.get_px_size()
            _check_pixels(across, down, f"a picture on page {page} has", limits)
        drawn: Image.Image = loaded.render(scale=scale).to_pil()
        return drawn


def page_text(source: Path | bytes, page: int, limits: DocumentLimits = DEFAULT_LIMITS) -> str:
    """The text that a page holds beside its picture, line by line; empty where it is a picture alone.

    A word that is broken at the end of a line has a hyphen there and goes on in the next line, as on the page.

    Raises:
        MediaError: as `probe_document`; `media_missing` also for a page that is not there.
    """
    with _opened(source, limits) as document:
        return _text(_page(document, page))


def document_text(source: Path | bytes, limits: DocumentLimits = DEFAULT_LIMITS) -> str:
    """The text of all pages in order, as `page_text` gives it, with an empty line between pages that have any.

    Raises:
        MediaError: as `probe_document`.
    """
    return in_one(page_texts(source, limits))


def page_texts(source: Path | bytes, limits: DocumentLimits = DEFAULT_LIMITS) -> list[str]:
    """The text of each page, as `page_text` gives it.

    Raises:
        MediaError: as `probe_document`.
    """
    with _opened(source, limits) as document:
        return [_text(_page(document, number)) for number in range(1, len(document) + 1)]


def in_one(texts: Iterable[str]) -> str:
    """The text of a document from those of its pages: an empty line between pages that have any."""
    return "\n\n".join(text for text in texts if text.strip())


@contextmanager
def _opened(source: Path | bytes, limits: DocumentLimits) -> Iterator[Any]:
    with _bytes_of(source) as stream, _PDFIUM:
        _check_ends(stream)
        try:
            with pdfium.PdfDocument(stream) as document:
                _check_pages(len(document), limits)
                yield document
        except pdfium.PdfiumError as error:
            if error.err_code == pdfium_c.FPDF_ERR_PASSWORD:
                raise MediaError("media_unreadable", "the document is encrypted and needs a password") from error
            raise MediaError("media_unreadable", f"damaged PDF document: {error}") from error


@contextmanager
def _bytes_of(source: Path | bytes) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    require_regular_file(source)
    try:
        stream = source.open("rb")
    except OSError as error:
        raise MediaError("media_unreadable", f"{source.name} can't be opened: {error.strerror}") from error
    with stream:
        yield stream


def _check_ends(stream: IO[bytes]) -> None:
    head = stream.read(_SEARCHED_BYTES)
    if b"%PDF-" not in head:
        raise MediaError("media_unreadable", f"not a PDF document; it looks like: {looks_like(head)}")
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _SEARCHED_BYTES))
    if b"%%EOF" not in stream.read():
        raise MediaError("media_unreadable", "the document is cut: its end mark is missing")
    stream.seek(0)


def _check_pages(pages: int, limits: DocumentLimits) -> None:
    if pages < 1:
        raise MediaError("media_unreadable", "the document has no page that can be read")
    if pages > limits.max_pages:
        raise MediaError("media_too_large", f"{pages} pages; the limit is {limits.max_pages}")


def _checked_size(size: tuple[float, float], page: int) -> tuple[float, float]:
    if not all(math.isfinite(side) and side > 0 for side in size):
        raise MediaError("media_unreadable", f"page {page} has no size")
    return size


def _check_pixels(width: int, height: int, what: str, limits: DocumentLimits) -> None:
    if width * height > limits.max_pixels:
        raise MediaError("media_too_large", f"{what} {width}x{height} pixels; the limit is {limits.max_pixels} in all")


def _page(document: Any, page: int) -> Any:
    if not 1 <= page <= len(document):
        raise MediaError("media_missing", f"there is no page {page} in a document of {len(document)}")
    return document[page - 1]


def _text(page: Any) -> str:
    text: str = page.get_textpage().get_text_bounded()
    return text.replace("\r\n", "\n").translate(_TEXT_MARKS)
