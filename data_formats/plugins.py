"""Formats that other people write: of installed packages, and in a Python file that the user names.

A package lists its formats under the entry-point group `aria_finetune.formats`; each entry is a `Format` or a tuple of
them. A file has them as `FORMAT` or `FORMATS`. Both are code of the user's choice and are run as such. Where a
converter of theirs fails on a record with an error of any kind, that record is rejected, and the error is told.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft

GROUP = "aria_finetune.formats"


@lru_cache(1)
def installed() -> tuple[Format, ...]:
    """The formats of installed packages, by the names of their entries.

    Raises:
        FormatError: an entry can't be imported, or is no format.
    """
    found: list[Format] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            value = entry.load()
        except Exception as error:
            message = f"the format {entry.name!r} of an installed package can't be imported: {error!r:.200}"
            raise FormatError(message, where=entry.value, fix="mend or uninstall that package") from error
        found += _formats(value, entry.value)
    return tuple(found)


@lru_cache(8)
def of_file(path: Path) -> tuple[Format, ...]:
    """The formats of a Python file, which is run.

    Raises:
        FormatError: it can't be run, or has neither `FORMAT` nor `FORMATS`.
    """
    name = f"aria_finetune_converter_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FormatError("it is no Python file", where=str(path), fix="name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise FormatError(f"it can't be run: {error!r:.300}", where=str(path), fix="mend the file") from error
    value = getattr(module, "FORMATS", getattr(module, "FORMAT", None))
    if value is None:
        raise FormatError("it has neither FORMAT nor FORMATS", where=str(path), fix="see docs/converters.md")
    return _formats(value, str(path))


def _formats(value: object, where: str) -> tuple[Format, ...]:
    values = value if isinstance(value, tuple | list) else (value,)
    formats = tuple(item for item in values if isinstance(item, Format))
    if len(formats) != len(values):
        raise FormatError("it is no Format and no tuple of them", where=where, fix="see docs/converters.md")
    return tuple(replace(form, convert=_Guarded(form)) for form in formats)


class _Guarded:
    """A converter whose slips cost a record each, and not the conversion."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._told = f"the converter {form.name}"

    def __call__(self, record: object, context: Context = PLAIN) -> Iterator[Candidate]:
        try:
            for candidate in self._form.convert(record, context):
                yield candidate if isinstance(candidate, Draft | RecordError) else self._no_draft(candidate)
        except (RecordError, FormatError):
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error!s:.200} ({Path(place.filename).name}:{place.lineno})"
            raise RecordError("bad_schema", f"{self._told} failed with {told}") from error

    def _no_draft(self, candidate: object) -> RecordError:
        return RecordError("bad_schema", f"{self._told} gave a {type(candidate).__name__}, not a Draft")
