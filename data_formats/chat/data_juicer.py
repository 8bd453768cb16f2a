"""Data-Juicer's documents: one text in which special tokens are the places of media that are listed beside it.

`{"text": "<__dj__image> .. <|__dj__eoc|>", "images": [path], "image_bytes": [binary], "videos": [path]}`
A record is no conversation but text to pretrain on. The token between two chunks is removed, nothing else is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, media_fields, placeholders
from aria_finetune.data_formats.building.turns import Piece, Slot, Turn, draft
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, PartType

_MARK = "__dj__"
_BYTES_KEY = "image_bytes"
_MEDIA_KEYS = frozenset({"images", "videos", "audios", _BYTES_KEY})
_KNOWN_KEYS = frozenset({"text", *_MEDIA_KEYS})
_ALONE_KEYS = frozenset({*_KNOWN_KEYS, "id", "meta", "stats", "__dj__meta__", "__dj__stats__"})
_TOKEN = re.compile(r"(<__dj__image>|<__dj__video>|<__dj__audio>|<\|__dj__eoc\|>)")
_KIND_OF_TOKEN: dict[str, PartType] = {"<__dj__image>": "image", "<__dj__video>": "video"}
_AUDIO = "<__dj__audio>"


def matches(record: object) -> bool:
    """`text` with a token of Data-Juicer or a column of its own, or beside nothing but known columns."""
    if not isinstance(record, dict) or not isinstance(record.get("text"), str | None) or "text" not in record:
        return False
    return marks(record) or _is_alone(record)


def marks(record: object) -> bool:
    """A token of Data-Juicer in the text, a column of its own, or media beside the text."""
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return False
    own = _BYTES_KEY in record or any(key.startswith(_MARK) for key in record)
    return own or _MARK in record["text"] or (_is_alone(record) and any(map(record.get, _MEDIA_KEYS)))


def _is_alone(record: Mapping[str, Any]) -> bool:
    """Whether the text stands beside nothing but known columns, their media by name; tables of others hold them."""
    columns = [record[key] for key in _MEDIA_KEYS if record.get(key) is not None]
    named = all(isinstance(column, list) and all(isinstance(name, str) for name in column) for column in columns)
    return named and record.keys() <= _ALONE_KEYS


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one document of a record.

    Raises:
        RecordError: `bad_schema`, `unsupported_modality`, or `placeholder_mismatch` where there are tokens and not
            as many as media.
    """
    source = fields.mapping(record, "the record")
    media_fields.refuse_audio(source)
    text = fields.turn_text(source, "text", "assistant", "the record")
    if _AUDIO in text:
        raise RecordError("unsupported_modality", f"{_AUDIO}: Aria does not hear")
    images, videos = _images(source), media_fields.videos({"videos": source.get("videos")})
    pieces = tuple(_pieces(text))
    meta, repairs = media_fields.without_bytes(fields.rest(source, _KNOWN_KEYS) | media_fields.rest(source))
    if (images or videos) and not any(isinstance(piece, Slot) for piece in pieces):
        pieces, repairs = (*images, *videos, *pieces), ("placeholder_added", *repairs)
        images, videos = [], []
    turns, _ = placeholders.fill([Turn("assistant", pieces)], images, videos, add_missing=False)
    yield draft(turns, meta=meta, repairs=repairs, document=True)


def _pieces(text: str) -> Iterator[Piece]:
    for fragment in _TOKEN.split(text):
        kind = _KIND_OF_TOKEN.get(fragment)
        if kind is not None:
            yield Slot(kind)
        elif not _TOKEN.fullmatch(fragment):
            yield fragment


def _images(source: Mapping[str, Any]) -> list[MediaReference]:
    """The images by their bytes, called by their paths, or by their paths alone."""
    if source.get(_BYTES_KEY) is None:
        return media_fields.images({"images": source.get("images")})
    held = fields.array(source[_BYTES_KEY], _BYTES_KEY)
    named = fields.array(source["images"], "images") if source.get("images") else [None] * len(held)
    if len(held) != len(named):
        raise RecordError("bad_schema", f"{len(held)} image_bytes for {len(named)} images")
    pairs = [{"bytes": content, "path": name} for content, name in zip(held, named, strict=True)]
    return [media_fields.medium("image", pair, f"{_BYTES_KEY}[{number}]") for number, pair in enumerate(pairs)]


FORMAT = Format(
    name="data-juicer",
    title="Data-Juicer's documents with <__dj__image> and <__dj__video>",
    schema=(
        '{"text": TEXT, "images": [PATH], "image_bytes": [BINARY], "videos": [PATH], "audios": [PATH],\n'
        ' "meta": OBJECT, "stats": OBJECT}'
    ),
    example={
        "text": "<__dj__image> A narrow street. <|__dj__eoc|> Two more: <__dj__image><__dj__image> <|__dj__eoc|>",
        "images": ["../images/street.jpg", "../images/square.jpg", "../images/bridge.jpg"],
    },
    traps=(
        "a record is text to pretrain on: one turn of the assistant, and no question",
        "tokens take the media in order; another number of them is placeholder_mismatch",
        "without any token the media go first (placeholder_added)",
        "<|__dj__eoc|> ends a chunk and is removed; blanks around tokens stay",
        "<__dj__audio> is unsupported_modality",
        "paths with ../ are right as long as they stay inside the media root",
        "a file of text alone is read as plain-text, with the same result",
    ),
    keys=_ALONE_KEYS,
    matches=matches,
    convert=convert,
    narrower_than=("plain-text",),
    marks=marks,
)
