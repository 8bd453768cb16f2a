"""What a file holds, told by its bytes and not by its name."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from aria_finetune.data_formats.building import strict_json
from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.reading.json_bytes import end_of_value, skip_space

Kind = Literal[
    "json_lines",
    "json_array",
    "json_object",
    "text",
    "text_lines",
    "table",
    "parquet",
    "tar",
    "class_folders",
    "pdf_folder",
]
"""`text` is told by no byte to be plain lines or a table: that is for whoever knows the formats."""

HEAD_BYTES = 1 << 20
"""How much of a file is looked at first."""

LONGEST_LINE = 64 << 20
"""A record may have this many bytes: pictures may be written into it. It is held in memory, several times over."""

LONGEST_DOCUMENT = 2 << 30
"""What is read as a whole, a JSON object or text that is not UTF-8, may have this many bytes."""

MOST_SWELLING = 100
"""How many times longer than its file compressed text may be that is held as a whole, if it is longer than
`LONGEST_LINE`; real JSON comes to 10 or 20 times."""

# UTF-32 little endian begins with the mark of UTF-16, so it is tried first.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_GZIP = b"\x1f\x8b"
_OTHER_CONTENTS = (
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"BZh", "compressed with bzip2", "decompress it first"),
    (b"\xfd7zXZ\x00", "compressed with xz", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first"),
    (b"version https://git-lfs", "a git-LFS pointer, not the file", "run `git lfs pull`"),
    (b"\xff\xd8\xff", "a JPEG image", "name the file that lists the images, or their folder"),
    (b"\x89PNG\r\n", "a PNG image", "name the file that lists the images, or their folder"),
    (b"%PDF-", "a PDF", "name the folder of the PDFs, or the file of questions about them"),
    (b"ARROW1", "an Arrow file", "write it out as Parquet or JSON Lines first"),
)
_JSON_SPACE = " \t\r\n"
_SMALLER = "write it out as JSON Lines in UTF-8"


@dataclass(frozen=True, slots=True)
class Contents:
    """Kind of a file; of text also the encoding, how many bytes its mark takes, and whether it is compressed."""

    kind: Kind
    encoding: str = "utf-8"
    mark: int = 0
    gzip: bool = False

    @property
    def seekable(self) -> bool:
        """Whether parts of it can be read as they lie in the file."""
        return not self.gzip and self.encoding == "utf-8"


def look(file: Path, encoding: str | None = None) -> Contents:
    """Tell what a file holds; `encoding` is that of text without a byte order mark, UTF-8 if it is not given.

    Raises:
        FormatError: it is empty or of a kind that is not read.
        OSError: it can't be read.
    """
    with file.open("rb") as stream:
        packed = stream.read(len(_GZIP)) == _GZIP
    head = _head(file, HEAD_BYTES, packed=packed)
    for magic, what, fix in _OTHER_CONTENTS:
        if head.startswith(magic):
            raise FormatError(f"it is {what}", fix=fix)
    if head[:4] == b"PAR1" and not packed:
        return Contents("parquet")
    if head[257:262] == b"ustar":
        return Contents("tar", gzip=packed)
    name, mark = _encoding(head, encoding)
    if head[mark:].lstrip().startswith(b"{") and len(head) == HEAD_BYTES and b"\n" not in head.strip():
        return Contents(_kind_of_long_line(file, packed=packed), name, mark, packed)
    # What is not of the encoding is told when it is read, with what comes before it.
    return Contents(_kind_of_text(head[mark:].decode(name, "replace")), name, mark, packed)


def open_utf8(file: Path, contents: Contents) -> BinaryIO:
    """The text of a file as a stream of UTF-8 without a byte order mark; other encodings are held in memory.

    Raises:
        FormatError: a byte is not of the encoding, or the compressed data are damaged.
    """
    stream: BinaryIO = gzip.open(file) if contents.gzip else file.open("rb")  # type: ignore[assignment]  # noqa: SIM115
    read_some(stream, contents.mark)
    if contents.encoding == "utf-8":
        return stream
    with stream:
        text = decoded(read_all(stream, file, contents), contents.encoding, contents.mark)
    return io.BytesIO(text.encode("utf-8", "surrogatepass"))


def decoded(data: bytes, encoding: str, offset: int) -> str:
    """Text of bytes that lie `offset` bytes from the start of their file.

    Raises:
        FormatError: a byte is not of the encoding.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        message = f"byte {offset + error.start} is not {encoding.upper()}: {error.reason}"
        raise FormatError(message, fix="name the encoding with --encoding, or write the file out as UTF-8") from error


def read_all(stream: BinaryIO, file: Path, contents: Contents) -> bytes:
    """The rest of the text of a file, of which `stream` is open.

    Raises:
        FormatError: it is too long, or its compressed data are damaged, or swell so much that they must be meant to fill
            the memory.
    """
    size = file.stat().st_size
    most = max(LONGEST_LINE, MOST_SWELLING * size) if contents.gzip else LONGEST_DOCUMENT
    data = b"" if size > LONGEST_DOCUMENT else read_some(stream, min(most, LONGEST_DOCUMENT) + 1)
    if size > LONGEST_DOCUMENT or len(data) > LONGEST_DOCUMENT:
        raise FormatError(f"it has to be read as a whole and is over {LONGEST_DOCUMENT >> 30} GiB", fix=_SMALLER)
    if len(data) > most:
        raise FormatError(f"its compressed data swell to more than {most >> 20} MiB", fix="decompress it first")
    return data


def read_some(stream: BinaryIO, size: int) -> bytes:
    """At most `size` bytes of a stream, all of them if it is below 0.

    Raises:
        FormatError: its compressed data are damaged.
    """
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"its compressed data are damaged: {error}", fix="get the file again") from error


def _head(file: Path, size: int, *, packed: bool) -> bytes:
    with gzip.open(file) if packed else file.open("rb") as stream:
        return read_some(stream, size)  # type: ignore[arg-type]


def byte_order_mark(head: bytes) -> tuple[str, int] | None:
    """The encoding that a text begins with the mark of, and how many bytes the mark takes; None without one."""
    return next(((name, len(mark)) for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), None)


def _encoding(head: bytes, wanted: str | None) -> tuple[str, int]:
    marked = byte_order_mark(head)
    if marked is not None:
        return marked
    if wanted is None:
        return "utf-8", 0
    try:
        return codecs.lookup(wanted).name, 0
    except LookupError as error:
        raise FormatError(f"there is no encoding {wanted!r}", fix="utf-8, utf-16, cp1252, gb18030, ...") from error


def _kind_of_long_line(file: Path, *, packed: bool) -> Kind:
    """Kind of a text that begins with an object, whose first line is long; little beside that line is held."""
    head = _head(file, LONGEST_LINE, packed=packed)
    start = head.find(b"{")
    end = head.find(b"\n", start)
    second = skip_space(head, end) if end >= 0 else len(head)
    if second == len(head):
        return "json_object"
    if head[second : second + 1] == b"{":
        return "json_lines"
    first = end_of_value(head, start)
    return "json_lines" if first is not None and skip_space(head, first) > end else "json_object"


def _kind_of_text(text: str) -> Kind:
    """Kind of a text by its first two lines that are not blank."""
    lines = (line for line in text.split("\n") if line.strip(_JSON_SPACE))
    first = next(lines, "").strip(_JSON_SPACE)
    second = next(lines, "").strip(_JSON_SPACE)
    if not first:
        raise FormatError("there is no record in it", fix="check that it is the file you mean; it is empty")
    if first[0] not in "[{":
        return "json_lines" if second[:1] in {"{", "["} else "text"
    if not second:
        return "json_array" if first[0] == "[" else "json_object"
    if _is_value(first):
        return "json_lines"
    # A broken first line of JSON Lines is told from the head of an indented object by what follows it.
    if first[0] == "[":
        return "json_array"
    return "json_lines" if second.startswith("{") else "json_object"


def _is_value(text: str) -> bool:
    try:
        return strict_json.end_of_value(text, 0) == len(text)
    except (json.JSONDecodeError, strict_json.StrictJSONError):
        return False
