"""Converters from the formats in which people keep training data to one canonical conversation record.

One file per family of formats, a table of them in `registry.py`, the record in `record.py`; what converters share is in
`building`, and `reading` makes records of files. Nothing in here opens an image or
a video, knows of a model, or imports anything of `aria_finetune` outside this package.
"""

from aria_finetune.data_formats.errors import REASONS, FormatError, RecordError
from aria_finetune.data_formats.format import Candidate, Companion, Context, Format, Settings
from aria_finetune.data_formats.record import (
    SCHEMA_VERSION,
    Draft,
    Media,
    MediaReference,
    Message,
    Part,
    Record,
    Source,
)

__all__ = [
    "REASONS",
    "SCHEMA_VERSION",
    "Candidate",
    "Companion",
    "Context",
    "Draft",
    "Format",
    "FormatError",
    "Media",
    "MediaReference",
    "Message",
    "Part",
    "Record",
    "RecordError",
    "Settings",
    "Source",
]
