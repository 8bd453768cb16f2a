"""A process that breaks sound files, byte by byte, and reads what is left of them; `test_broken_bytes` watches it.

Run as `broken_bytes.py FOLDER SEED FIRST SECONDS`: it breaks files from number FIRST on for so many seconds, and says the
number of each before it is read, so that whoever watches knows where it hung or crashed. The last line is a
JSON object with what it met. The file that is being read lies in FOLDER.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
import resource
import shutil
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import sample_files
from process_watch import memory_mib, tree

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.conversion.dataset import is_dataset
from aria_finetune.data_formats.errors import REASONS, FormatError, RecordError
from aria_finetune.data_formats.reading import archives, contents, json_array, json_lines, sources, subtitles
from aria_finetune.data_formats.reading.extents import WHOLE, Tally
from aria_finetune.data_formats.reading.json_array import WrongGuess
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.documents import DocumentLimits
from aria_finetune.media.images import ImageInfo, ImageLimits
from aria_finetune.media.inspection import Inspector
from aria_finetune.media.videos import VideoInfo, VideoLimits

LOOKING_SECONDS = 10.0
"""How long the inspector waits; the one who watches this process waits longer."""

MOST_PIXELS = 4_000_000
BLOCKS = (16, 100, 1 << 20)
"""Sizes of the blocks in which files are read: small ones, so that what lies between two of them is met."""

TOKENS = (
    b"\n", b"\r\n", b"\0", b"\xff", b'"', b"'", b"\\", b"\\u", b"\\ud800", b"{", b"}", b"[", b"]", b",", b":", b"{}", b"[[", b"NaN",
    b"1e999", b"9" * 30, b"9" * 5000, b'{"a":1,"a":2}', b"\xef\xbb\xbf", b"\xff\xfe", b"\xff\xfe\0\0", b"\xed\xa0\x80", b"\x1f\x8b\x08\0",
    b"PAR1", b"ustar", b"%PDF-", b"%%EOF", b"endobj", b"stream\n", b"xref", b"/Length ", b"/Kids [", b"1 0 R", b" --> ", b"WEBVTT",
    b"[Events]", b"Dialogue: ", b"<c.", b"{\\", b"-1", b"2147483648", b"99:99:99,999", b"moov", b"mdat", b"stts", b"IDAT", b"IEND",
    b"Exif\0\0", b"RIFF", b"\xff\xda", b"\xff\xd8\xff", b"=?", b"\x1a\x45\xdf\xa3",
)  # fmt: skip
NUMBERS = (
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**40,
    2**63 - 1,
    2**64 - 1,
)


class Breaker:
    """Breaks files; `random` is its source of chance."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(repr(seed))

    def broken(self, seeds: Sequence[bytes]) -> bytes:
        """One of the files with a few things changed."""
        data = bytearray(self.random.choice(seeds))
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 5, 10))):
            self._change(data, self.random.choice(seeds))
        return bytes(data)

    def _change(self, data: bytearray, other: bytes) -> None:
        place = self.random.randrange(len(data) + 1)
        length = min(self.random.choice((1, 2, 4, 16, 100, 1000, len(data))), len(data) - place)
        piece = data[place : place + length]
        match self.random.randrange(11):
            case 0 | 1 if data:
                place = self.random.randrange(len(data))
                data[place] ^= 1 << self.random.randrange(8)
            case 2 if data:
                data[self.random.randrange(len(data))] = self.random.randrange(256)
            case 3:
                del data[place:]
            case 4:
                del data[place : place + length]
            case 5:
                data[place:place] = piece * self.random.choice((1, 2, 30))
            case 6:
                data[place : place + self.random.choice((0, length))] = self.random.choice(TOKENS)
            case 7:
                data[place:] = other[self.random.randrange(len(other) + 1) :]
            case 8:
                data[place : place + length] = bytes(length)
            case 9:
                data[place : place + length] = self.random.randbytes(length)
            case _:
                self._renumber(data, place)

    def _renumber(self, data: bytearray, place: int) -> None:
        """Put another number where one of so many bytes may stand."""
        width, order = self.random.choice((1, 2, 4, 8)), self.random.choice(("little", "big"))
        old = int.from_bytes(data[place : place + width], order)  # type: ignore[arg-type]
        new = self.random.choice((*NUMBERS, old + 1, old - 1, old * 2))
        data[place : place + width] = (new % 2 ** (8 * width)).to_bytes(width, order)  # type: ignore[arg-type]

    def mended(self, kind: str, data: bytes) -> bytes:
        """The file with its checksums put right, so that what lies behind them is reached; now and then left as it is."""
        if self.random.random() < 0.4:
            return data
        if kind == "gzip":
            return gzip.compress(data, 1, mtime=0)
        if kind == "tar":
            data = with_tar_sums(data)
            return gzip.compress(data, 1, mtime=0) if self.random.random() < 0.3 else data
        return with_png_sums(data) if kind == "image" else data


def with_tar_sums(data: bytes) -> bytes:
    blocks = bytearray(data)
    for start in range(0, len(data) - 511, 512):
        head = blocks[start : start + 512]
        if head[257:262] == b"ustar":
            head[148:156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(head)
    return bytes(blocks)


def with_png_sums(data: bytes) -> bytes:
    out, place = bytearray(data), 8
    while data[:4] == b"\x89PNG" and place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if place + 12 + length > len(data):
            break
        end = place + 8 + length
        out[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(out)


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Sound files by kind."""
    json_files = sample_files.json_files()
    texts = [text for kind in ("lines", "list", "document") for text in json_files[kind]]
    return {
        **json_files,
        "table": sample_files.tables(),
        "plain text": sample_files.PLAIN_TEXT,
        "gzip": [*texts, *sample_files.tables()],
        "parquet": sample_files.parquet_files(),
        "tar": sample_files.tar_files(),
        "subtitles": sample_files.SUBTITLES,
        "image": sample_files.images(),
        "clip": sample_files.clips(folder),
        "pdf": sample_files.pdfs(),
    }


class Reader:
    """Reads broken files and checks what comes of it; `met` counts outcomes."""

    def __init__(self, folder: Path) -> None:
        self.met: Counter[str] = Counter()
        self.inspector = Inspector(LOOKING_SECONDS)
        self._folder = folder

    def read(self, kind: str, data: bytes, breaker: Breaker) -> None:
        """Read the file in all ways that there are for its kind."""
        file = self._folder / f"broken.{kind}"
        file.write_bytes(data)
        if kind == "subtitles":
            self._tell(kind, lambda: read_subtitles(data, breaker.random))
        elif kind in {"image", "clip", "pdf"}:
            self._look(kind, file, data)
        else:
            json_lines.BLOCK_BYTES = json_array.BLOCK_BYTES = breaker.random.choice(BLOCKS)
            self._tell(kind, lambda: self._read_source(file, breaker.random))
            if breaker.random.random() < 0.3:
                self._tell(f"{kind} converted", lambda: self._convert(file))

    def _tell(self, kind: str, read: Callable[[], object]) -> None:
        try:
            read()
            self.met[f"{kind}: read"] += 1
        except (FormatError, UserError, MediaError) as error:
            assert str(error)  # noqa: PT017
            if isinstance(error, MediaError):
                assert error.reason in REASONS  # noqa: PT017
            # A traceback in the other process, and not a reader that fell over: what it raised is no `MediaError`.
            assert "(exit code" not in str(error), str(error)  # noqa: PT017
            told = re.search(r"crashed \(\w+|took longer", str(error))
            self.met[f"{kind}: {told[0] if told else 'refused'}"] += 1

    def _read_source(self, file: Path, chance: random.Random) -> None:
        """Read it as a whole and in parts, of which the same must come."""
        encoding = chance.choice((None, None, None, "cp1252", "utf-16", "latin-1"))
        for located in sources.locate(file, encoding):
            layouts = ("lines", "rows") if located.contents.kind == "text" else (None,)
            for layout in layouts:
                laid_out = sources.with_layout(located, layout) if layout else located
                whole = list(sources.read(laid_out))
                assert all(described(value) for value in whole)
                size = chance.randint(1, 2 * file.stat().st_size + 1)
                check_parts(laid_out, size, chance.choice((1, 2)), whole)

    def _convert(self, file: Path) -> None:
        output = self._folder / "out"
        shutil.rmtree(output, ignore_errors=True)
        report = convert(file, output, ConversionOptions(max_rejects=10**9, max_pixels=MOST_PIXELS))
        assert report.read == report.written + report.rejected >= report.source_records
        assert is_dataset(output)

    def _look(self, kind: str, file: Path, data: bytes) -> None:
        for source in (file, data):
            for decode in (False, True):
                self._tell(
                    f"{kind} {'decoded' if decode else 'measured'}",
                    lambda: self._seen(kind, source, decode=decode),  # noqa: B023
                )

    def _seen(self, kind: str, source: Path | bytes, *, decode: bool) -> None:
        if kind == "pdf":
            document = self.inspector.document(source, DocumentLimits(100, MOST_PIXELS), decode=decode)
            assert 0 < document.pages == len(document.sizes)
            assert all(0 < side < math.inf for size in document.sizes for side in size)
            return
        seen: ImageInfo | VideoInfo
        if kind == "image":
            seen = self.inspector.image(source, ImageLimits(MOST_PIXELS), decode=decode)
        else:
            seen = self.inspector.video(source, VideoLimits(MOST_PIXELS, 10_000), decode=decode)
            assert 0 < seen.frames == len(seen.times) <= 10_000
            assert list(seen.times) == sorted(seen.times)
            assert 0 <= seen.duration < math.inf
        assert min(seen.width, seen.height, seen.frames) > 0
        assert seen.width * seen.height <= MOST_PIXELS


def check_parts(file: sources.SourceFile, size: int, tail: int, whole: list[object]) -> None:
    """Extents hold together what the whole holds, and as many as they were said to, unless the guess was wrong."""
    extents = sources.cut(file, size, tail)
    found: list[object] = []
    before = Tally()
    try:
        for extent in extents:
            tally = sources.count(file, extent)
            values = list(sources.read(file, extent, before))
            assert len(extents) == 1 or tally.records == len(values), f"{tally.records} of {len(values)} in {extent}"
            found += values
            before += tally
    except WrongGuess:
        assert file.contents.kind == "json_array"
        assert extents != [WHOLE]
        return
    told, expected = [described(value) for value in found], [described(value) for value in whole]
    if file.contents.kind == "json_array":
        # Where a bad record stands is told from the beginning of its part.
        told, expected = [first_word(item) for item in told], [first_word(item) for item in expected]
    assert told == expected


def described(value: object) -> str:
    """A value as text that differs wherever values do."""
    if isinstance(value, RecordError):
        assert value.reason in REASONS
        assert len(value.detail) < 2000
        return f"error: {value}"
    assert value is None or isinstance(value, dict | list | str | int | float | bool), type(value)
    return repr(value)


def first_word(text: str) -> str:
    return text[:20] if text.startswith("error: ") else text


def read_subtitles(data: bytes, chance: random.Random) -> None:
    encoding = chance.choice((None, None, "cp1252", "utf-16", "no such encoding"))
    read = subtitles.read(data, encoding=encoding, collapse_repeats=chance.random() < 0.5)
    times = [(cue.start, cue.end) for cue in read.cues]
    assert times == sorted(times)
    assert all(0 <= start < end < math.inf for start, end in times)
    assert all(cue.text.strip() for cue in read.cues)


def memory() -> float:
    """The most memory that this process, and the one in which media are looked into, have used, in MiB."""
    return sum(memory_mib(process) for process in tree(os.getpid()))


def numbered(first: int, seconds: float) -> Iterator[int]:
    """Numbers from `first` on, for so many seconds."""
    end = time.monotonic() + seconds
    for number in count(first):
        if time.monotonic() > end:
            return
        yield number


def main(folder: Path, seed: str, first: int, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What is refused for its size must be so in a time that a test has.
    contents.LONGEST_LINE = json_array.LONGEST_LINE = json_lines.LONGEST_LINE = 1 << 20
    archives.SAMPLE_BYTES = archives.TEXT_BYTES = 1 << 20
    files = seeds(folder)
    kinds = list(files)
    reader = Reader(folder)
    at_first: float | None = None
    number = first
    for number in numbered(first, seconds):
        kind = kinds[number % len(kinds)]
        print(number, kind, flush=True)
        breaker = Breaker((seed, number))
        reader.read(kind, breaker.mended(kind, breaker.broken(files[kind])), breaker)
        if number - first == 5 * len(kinds):
            at_first = memory()
    told: dict[str, Any] = {
        "cases": number - first + 1,
        "met": dict(sorted(reader.met.items())),
        "grown_mib": memory() - (at_first or memory()),
        "peak_mib": memory(),
    }
    reader.inspector.close()
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    os._exit(0)
