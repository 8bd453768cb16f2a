"""Tar archives of samples, as WebDataset writes them: members with the same name up to the first dot are one record.

Nothing is unpacked to disk. Links, devices and names that lead out of the archive make their sample a bad record;
a sample of more than `SAMPLE_BYTES` too. An archive that is damaged or cut anywhere says so in its last record:
`tarfile` by itself takes a damaged header for the end.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Self, cast

from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.reading import fast_json
from aria_finetune.data_formats.reading.contents import Contents

SAMPLE_BYTES = 256 << 20
"""A sample is held in memory as a whole."""

TEXT_BYTES = 64 << 20
HEADER_BYTES = 1 << 20
"""The same holds for what stands before a member: long names, and lists of holes."""

KEY = "__key__"

_TEXTS = frozenset({"txt", "json", "cls", "caption", "transcript"})
_DAMAGED_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)

# What the standard library was seen to raise on damaged headers.
_DAMAGED = (
    *_DAMAGED_GZIP, tarfile.TarError, ValueError, LookupError, TypeError, OverflowError, AttributeError, RecursionError
)  # fmt: skip


class _Header(tarfile.TarInfo):
    """A header that is not passed over where it is damaged."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the mark of the end
            what = f"there is a broken header ({error})" if buf else "its end mark is missing"
            raise tarfile.ReadError(what) from error
        if header.size < 0:
            raise tarfile.ReadError(f"there is a member of {header.size} bytes")
        return header


class _Stream:
    """The stream of an archive, from which no more than `left` bytes can be read."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile) -> None:
        self._stream = stream
        self.seek, self.tell, self.left = stream.seek, stream.tell, HEADER_BYTES

    def read(self, size: int) -> bytes:
        """At most `size` bytes.

        Raises:
            tarfile.ReadError: that is more than there may be.
        """
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError(f"the header of a member is longer than {HEADER_BYTES >> 10} KiB")
        return self._stream.read(size)


def read(file: Path, contents: Contents) -> Iterator[object]:
    """The samples of an archive in order: `{"__key__": name, "jpg": bytes, "txt": text, "json": value, ...}`.

    Text members (txt, cls, json, and the same compressed with gzip) are decoded. An archive that is cut short ends with
    a `RecordError`.

    Raises:
        FormatError: it holds nothing.
    """
    sample: dict[str, Any] = {}
    problem: RecordError | None = None
    empty = True
    with gzip.open(file) if contents.gzip else file.open("rb") as stream:
        size = None if contents.gzip else os.fstat(stream.fileno()).st_size
        try:
            for archive, member in _members(stream):
                if member.isdir():
                    continue
                empty = False
                key, ending = _name(member.name)
                if sample and key != sample[KEY]:
                    yield problem or sample
                    sample, problem = {}, None
                sample[KEY] = key
                if size is not None and member.offset_data + (0 if member.issparse() else member.size) > size:
                    raise tarfile.ReadError("unexpected end of data")
                try:
                    sample |= _content(archive, member, ending, sample)
                except RecordError as error:
                    problem = problem or error
        except _DAMAGED as error:
            name = f" in the sample {sample[KEY]!r:.80}" if sample else ""
            yield RecordError("bad_archive", f"the archive is damaged{name}: {error!s:.200}")
            return
    if empty:
        raise FormatError("there is no record in it", fix="check that it is the file you mean; the archive is empty")
    if sample:
        yield problem or sample


def _members(stream: BinaryIO | gzip.GzipFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of an archive, each to be read before the next is asked for.

    Raises:
        tarfile.ReadError: it is damaged, or there is more behind its end.
        ValueError, IndexError and the like: it is damaged too.
    """
    limited = _Stream(stream)
    with tarfile.open(fileobj=cast("BinaryIO", limited), mode="r:", tarinfo=_Header) as archive:
        while (member := archive.next()) is not None:
            # Those that have been read are kept for whoever goes back, which nobody does here.
            archive.members.clear()  # type: ignore[attr-defined]
            limited.left = SAMPLE_BYTES + TEXT_BYTES
            yield archive, member
            limited.left = HEADER_BYTES
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("there is more behind its end, as when archives are joined")


def _name(name: str) -> tuple[str, str]:
    """The key of a member, folders included, and what stands behind the first dot of its file name."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return (path.parent / stem).as_posix(), ending.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str, sample: dict[str, Any]) -> dict[str, Any]:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise RecordError("media_unsafe_path", f"the member {member.name!r:.120} leads out of the archive")
    if not member.isfile():
        raise RecordError("media_unsafe_path", f"the member {member.name!r:.120} is a link or a device")
    if member.issparse():
        raise RecordError("bad_archive", f"the member {member.name!r:.120} is a file with holes")
    name = ending.removesuffix(".gz") if _is_text(ending) else ending
    if name in sample:
        raise RecordError("bad_schema", f"the sample has two members {name!r:.40}")
    held = sum(len(value) for value in sample.values() if isinstance(value, bytes | str))
    if held + member.size > SAMPLE_BYTES:
        raise RecordError("media_too_large", f"the sample is larger than {SAMPLE_BYTES >> 20} MiB")
    stream = archive.extractfile(member)
    if stream is None:
        raise RecordError("bad_archive", f"the member {member.name!r:.120} has no content")
    if not _is_text(ending):
        return {name: stream.read()}
    data = _limited(stream)
    data = _unpacked(data, member.name) if ending.endswith(".gz") else data
    return {name: _value(data, name.rpartition(".")[2], member.name)}


def _is_text(ending: str) -> bool:
    return ending.removesuffix(".gz").rpartition(".")[2] in _TEXTS


def _value(data: bytes, kind: str, name: str) -> object:
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise RecordError("bad_text", f"byte {error.start} of {name!r:.120} is not UTF-8") from error
    if kind != "json":
        return text
    value = fast_json.parse_one(text)
    if isinstance(value, RecordError):
        raise RecordError(value.reason, f"{name!r:.120}, {value.detail}")
    return value


def _unpacked(data: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
            return _limited(unpacked)
    except _DAMAGED_GZIP as error:
        raise RecordError("bad_archive", f"the compressed data of {name!r:.120} are damaged: {error}") from error


def _limited(stream: IO[bytes] | gzip.GzipFile) -> bytes:
    data = stream.read(TEXT_BYTES + 1)
    if len(data) > TEXT_BYTES:
        raise RecordError("bad_text", f"a text of more than {TEXT_BYTES >> 20} MiB")
    return data
