"""Prompts of a file or folder, in order: plain lines, or whatever a converter reads.

A `.txt` has a prompt in every line that is not blank. JSON of texts, or of objects with `prompt` and beside it at most `id`, `system`,
`images`, `videos` and `documents`, is read here, its media below the file's folder; all else by the converters. What can't be used
comes out in its place, with the reason. Knows records, not models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from aria_finetune.conversion import ConversionOptions, Reject, is_dataset, read_dataset, read_records
from aria_finetune.conversion.engine import problems_told
from aria_finetune.conversion.options import Verification
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.reading.extents import WHOLE, Tally
from aria_finetune.data_formats.record import Message, Part, Record
from aria_finetune.errors import MediaError, UserError
from aria_finetune.media.inspection import Inspector
from aria_finetune.speaking.attaching import FORMAT, Attacher, Said, message, record_of

Entry = Record | Reject
MEDIA_KEYS = ("images", "videos", "documents")
KEYS = frozenset({"id", "prompt", "system", *MEDIA_KEYS})
HEAD = 16
"""Rows that say what a file holds."""


@dataclass(frozen=True)
class Reading:
    """How a file of prompts is read: its format and where its media are, as `convert` takes them.

    `system` is said before prompts that have no system turn; `store` is a folder for media that a source holds itself;
    `verify` is how far media are looked into, `stat` where nobody will be shown them.
    """

    inspector: Inspector
    store: Path
    format: str = "auto"
    media_roots: tuple[Path, ...] = ()
    system: str | None = None
    max_pixels: int = 64_000_000
    verify: Verification = "header"


def read_prompts(source: Path, reading: Reading) -> Iterator[Entry]:
    """Every prompt of a source, and a `Reject` in the place of each that can't be used.

    Raises:
        UserError: the source is not there, can't be read, or is of no known format.
    """
    if not source.exists():
        raise UserError("there is no such file or folder", where=str(source), fix="name a file of prompts with --from")
    if source.suffix == ".txt" and reading.format in ("auto", FORMAT):
        return _plain(source, _lines(source), reading)
    plain = reading.format in ("auto", FORMAT) and source.is_file() and not is_dataset(source)
    if plain and (reading.format == FORMAT or _holds_prompts(source)):
        return _plain(source, _values(source), reading)
    return (_with_system(entry, reading.system) for entry in _converted(source, reading))


def is_prompt(value: object) -> bool:
    """A text, or an object with `prompt` and nothing that is not ours."""
    return isinstance(value, str) or (isinstance(value, dict) and "prompt" in value and value.keys() <= KEYS)


def _holds_prompts(source: Path) -> bool:
    """Whether the first rows are prompts, most of those that can be read: a bad one says nothing of the others."""
    head = [value for value in islice(_values(source), HEAD) if not isinstance(value, RecordError)]
    return bool(head) and 2 * sum(map(is_prompt, head)) >= len(head)


def _lines(source: Path) -> Iterator[object]:
    """The lines of a text. They end at line feeds alone: other characters that Python ends lines at may be of a prompt."""
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"it can't be read ({error})", where=str(source), fix="save it as UTF-8 text") from error
    yield from (line.removesuffix("\r") for line in text.split("\n") if line.strip())


def _values(source: Path) -> Iterator[object]:
    with problems_told(source):
        for file in sources.locate(source):
            yield from sources.read(file, WHOLE, Tally())


def _plain(source: Path, values: Iterator[object], reading: Reading) -> Iterator[Entry]:
    roots = reading.media_roots or (source.parent,)
    attacher = Attacher(reading.inspector, reading.max_pixels, [root.absolute() for root in roots], reading.verify)
    for ordinal, value in enumerate(values):
        name = _id(value) or f"{FORMAT}:{source.name}:{ordinal}"
        try:
            if isinstance(value, RecordError):
                raise value
            yield record_of(name, _turns(value, reading.system), attacher, file=source.name, ordinal=ordinal)
        except (RecordError, MediaError) as error:
            yield Reject(source.name, ordinal, None, name, error.reason, error.detail)


def _id(value: object) -> str | None:
    """The id that its author gave a prompt, also one that can't be used."""
    name = value.get("id") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def _turns(value: object, system: str | None) -> list[tuple[str, list[Said]]]:
    written: dict[Any, Any] = {"prompt": value} if isinstance(value, str) else value if isinstance(value, dict) else {}
    if not is_prompt(written):
        unknown = ", ".join(sorted(map(str, written.keys() - KEYS)))
        raise RecordError(
            "bad_schema", f"the unknown key(s) {unknown}" if unknown else "neither a text nor an object with 'prompt'"
        )
    for key in ("id", "prompt", "system"):
        if not isinstance(written.get(key, ""), str | None):
            raise RecordError("bad_schema", f"{key!r} is no text")
    media = {key: _names(written.get(key), key) for key in MEDIA_KEYS}
    said = message(written["prompt"] or "", **media)
    before = written.get("system") or system
    return [*([("system", [before])] if before else []), ("user", said)]


def _names(value: object, key: str) -> list[str]:
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecordError("bad_schema", f"{key!r} is no list of paths")
    return names


def _converted(source: Path, reading: Reading) -> Iterator[Entry]:
    def read(on_reject: Callable[[Reject], None]) -> Iterator[Record]:
        if is_dataset(source):
            return read_dataset(source, inspector=reading.inspector, media_store=reading.store, on_reject=on_reject)
        options = ConversionOptions(
            format=reading.format,
            media_roots=reading.media_roots,
            verify=reading.verify,
            max_pixels=reading.max_pixels,
            evaluation=True,
        )
        return read_records(
            source, options, on_reject=on_reject, media_store=reading.store, inspector=reading.inspector
        )

    refused: list[Reject] = []
    for record in read(refused.append):
        yield from refused
        refused.clear()
        yield record
    yield from refused


def _with_system(entry: Entry, system: str | None) -> Entry:
    if system is None or isinstance(entry, Reject) or any(message.role == "system" for message in entry.messages):
        return entry
    return replace(entry, messages=(Message("system", (Part("text", system),)), *entry.messages))
