"""What the first bytes of a file say it is, whatever its name claims. Opens nothing and decodes nothing."""

from __future__ import annotations

import codecs

HEAD_BYTES = 512
"""How many bytes from the start of a file the functions here want to see."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "PDF document"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"8BPS", "Photoshop document"),
    (b"%!PS", "PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "PostScript document"),
    (b"\x00\x00\x01\x00", "Windows icon"),
    (b"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (b"OggS", "Ogg file"),
    (b"ID3", "MP3 audio"),
    (b"fLaC", "FLAC audio"),
    (b"#EXTM3U", "playlist"),
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"II*\x00", "TIFF image"),
    (b"MM\x00*", "TIFF image"),
)
_RIFF_KINDS = {b"WEBP": "WebP image", b"AVI ": "AVI video", b"WAVE": "WAV audio"}
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


def looks_like(head: bytes) -> str:
    """Name what begins with `head`, in words for an error message."""
    if not head:
        return "empty file (0 bytes)"
    if head.startswith(_LFS_POINTER):
        return "git-LFS pointer: run git lfs pull"
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF":
        return _RIFF_KINDS.get(head[8:12], "RIFF file")
    if head[4:8] == b"ftyp":
        return _iso_media(head)
    return _text_kind(head) or "unknown kind of file"


def is_avif(head: bytes) -> bool:
    """Whether an ISO media file declares AVIF as its major brand or among the compatible ones."""
    if head[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, length, 4))}
    return not _AVIF_BRANDS.isdisjoint(brands)


def _iso_media(head: bytes) -> str:
    if is_avif(head):
        return "AVIF image"
    return "HEIC image: convert it to JPEG or PNG" if head[8:12] in _HEIF_BRANDS else "MP4 or QuickTime video"


def _text_kind(head: bytes) -> str | None:
    try:
        # The end of `head` may cut a character in two, which the incremental decoder forgives.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    start = text.lstrip().lower()
    if "<svg" in start:
        return "SVG drawing: convert it to PNG"
    if start.startswith(("<!doctype html", "<html")):
        return "HTML page"
    if any(ord(character) < 32 and character not in "\t\n\f\r" for character in text):
        return None
    return "text file"
