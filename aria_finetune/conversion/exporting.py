"""A converted data set in the forms of others: Aria's own `train.jsonl`, and WebDataset.

Neither can hold all that a canonical record can. What a form can't hold is refused record by record, with a reason, and
never left out of one that is written.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson

from aria_finetune.conversion.dataset import REJECTS, REPORT, is_dataset, read_dataset
from aria_finetune.conversion.engine import problems_told
from aria_finetune.conversion.options import SHOWN_REJECTS, ConversionReport, Reject
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Media, Message, Record
from aria_finetune.errors import TooManyRejects, UserError
from aria_finetune.redaction import redact_values
from aria_finetune.staging import staged_folder

Form = Literal["aria", "webdataset"]
TAR_BYTES = 1 << 30


class _Writer(Protocol):
    def write(self, record: Record, number: int) -> None:
        """Write a record.

        Raises:
            RecordError: the form can't hold it.
        """
        ...


def export(source: Path, output: Path, form: Form, *, max_rejects: int = 0) -> ConversionReport:
    """Write a converted data set in another form, all of it or nothing; `rejects.jsonl` and `report.json` lie beside it.

    Args:
        source: the folder of a converted data set.
        output: a folder, which must not exist or be empty.
        form: `aria` (`train.jsonl` and `media/`) or `webdataset` (tar files of about a gigabyte).
        max_rejects: how many records may be refused.

    Raises:
        UserError: the source is no converted data set or is damaged, or the output is in use.
        TooManyRejects: more than `max_rejects`; the output is there, with all that the form can hold.
    """
    if not is_dataset(source):
        raise UserError("it is no converted data set", where=str(source), fix="convert it first, without --to")
    started, report, rejects = time.monotonic(), ConversionReport(), list[Reject]()
    written = 0
    with problems_told(output), staged_folder(output) as folder:
        with _writer(form, folder) as writer:
            for number, record in enumerate(read_dataset(source, on_reject=rejects.append)):
                try:
                    writer.write(record, number)
                    written += 1
                except RecordError as error:
                    place = record.source
                    rejects.append(Reject(place.file, place.ordinal, None, record.id, error.reason, error.detail))
        report.rejected, report.written = len(rejects), written
        report.source_records = report.read
        report.formats[form] = report.read
        report.reasons.update(reject.reason for reject in rejects)
        report.seconds = time.monotonic() - started
        lines = [orjson.dumps(redact_values(asdict(reject))) + b"\n" for reject in rejects]
        (folder / REJECTS).write_bytes(b"".join(lines))
        (folder / REPORT).write_bytes(orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2) + b"\n")
    if len(rejects) > max_rejects:
        shown = "".join(f"\n  {reject.describe()}" for reject in rejects[:SHOWN_REJECTS])
        fix = f"all of them are in {output / REJECTS}; allow them with --max-rejects {len(rejects)}"
        raise TooManyRejects(f"{len(rejects)} records can't be held by {form}{shown}", where=str(output), fix=fix)
    return report


@contextmanager
def _writer(form: Form, folder: Path) -> Iterator[_Writer]:
    if form == "aria":
        with (folder / "train.jsonl").open("wb") as stream:
            yield _AriaWriter(folder, stream)
        return
    writer = _TarWriter(folder)
    try:
        yield writer
    finally:
        writer.close()


class _AriaWriter:
    """Aria's own form: parts of text, images in their order, at most one video and not beside images."""

    def __init__(self, folder: Path, stream: io.BufferedWriter) -> None:
        self._folder = folder
        self._stream = stream

    def write(self, record: Record, number: int) -> None:  # noqa: ARG002 (of the protocol)
        shown = [record.media[part.media] for message in record.messages for part in message.content
                 if part.media is not None]  # fmt: skip
        self._check(record, shown)
        messages = [{"role": message.role, "content": [_aria_part(part) for part in message.content]}
                    for message in record.messages]  # fmt: skip
        line: dict[str, Any] = {"messages": messages}
        if shown and shown[0].kind == "video":
            video: dict[str, Any] = {"path": self._keep(shown[0])}
            line["video"] = video | ({"num_frames": shown[0].num_frames} if shown[0].num_frames else {})
        elif shown:
            line["images"] = [self._keep(medium) for medium in shown]
        self._stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def _check(self, record: Record, shown: list[Media]) -> None:
        kinds = {medium.kind for medium in shown}
        if any(message.role not in {"user", "assistant"} for message in record.messages):
            raise RecordError("bad_roles", "Aria's form has user and assistant turns only")
        if record.messages[0].role != "user":
            raise RecordError("bad_roles", "Aria's form begins with a user turn")
        if any(message.train is not None for message in record.messages):
            raise RecordError("bad_schema", "Aria's form can't keep single turns out of the loss")
        if "document" in kinds or kinds == {"image", "video"}:
            raise RecordError("unsupported_modality", f"Aria's form can't hold {' and '.join(sorted(kinds))}")
        if "video" in kinds and (len(shown) > 1 or shown[0].start is not None or shown[0].end is not None):
            raise RecordError("unsupported_modality", "Aria's form holds one video, and all of it")

    def _keep(self, medium: Media) -> str:
        source = Path(medium.path or "")
        name = f"media/{source.parent.name}/{source.name}" if medium.sha256 else f"media/{source.name}"
        target = self._folder / name
        if target.exists() and not medium.sha256 and not target.samefile(source):
            raise RecordError("bad_schema", f"two media are called {source.name}; convert with --media copy")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        return name


def _aria_part(part: Any) -> dict[str, Any]:
    return {"type": part.type, "text": part.text}


class _TarWriter:
    """WebDataset: `000000000.json` with chat messages, and their media as `000000000.0.jpg` and so on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tar: tarfile.TarFile | None = None
        self._count = self._bytes = 0

    def write(self, record: Record, number: int) -> None:
        if any(medium.kind == "document" for medium in record.media):
            raise RecordError("unsupported_modality", "a sample can't hold a document")
        if any(medium.start is not None or medium.end is not None for medium in record.media):
            raise RecordError("unsupported_modality", "a sample can't hold part of a video")
        key = f"{number:09d}"
        names = [f"{key}.{place}{Path(medium.path or '').suffix}" for place, medium in enumerate(record.media)]
        value: dict[str, Any] = {"messages": [_chat_message(message, names) for message in record.messages]}
        value |= {"id": record.id, "references": list(record.references), "meta": orjson.loads(record.meta)}
        value |= {"tools": orjson.loads(record.tools)} if record.tools else {}
        self._add(f"{key}.json", orjson.dumps(value))
        for name, medium in zip(names, record.media, strict=True):
            self._add(name, Path(medium.path or "").read_bytes())
        if self._bytes > TAR_BYTES:
            self.close()

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._tar, self._bytes = None, 0

    def _add(self, name: str, content: bytes) -> None:
        if self._tar is None:
            self._tar = tarfile.open(self._folder / f"data-{self._count:05d}.tar", "w")  # noqa: SIM115 (closed later)
            self._count += 1
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        self._bytes += len(content)


def _chat_message(message: Message, names: list[str]) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part.text} if part.media is None else {"type": part.type, "path": names[part.media]}
        for part in message.content
    ]
    return {"role": message.role, "content": content} | ({} if message.train is None else {"train": message.train})
