"""The Cauldron, FineVision and nanoVLM: tables of `images` and of `texts`, the turns of one conversation.

`{"images": [{"bytes", "path"}] | null, "texts": [{"user", "assistant", "source"}]}`
There is no placeholder: all images come before the first question.
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import chat_fields, fields, media_fields, placeholders
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft

_KNOWN_KEYS = frozenset({"images", "texts"})
_TURN_KEYS = ("user", "assistant")


def matches(record: object) -> bool:
    """`texts`, a list of objects with `user` or `assistant`."""
    if not isinstance(record, dict) or not isinstance(record.get("texts"), list):
        return False
    return bool(record["texts"]) and all(isinstance(t, dict) and t.keys() & set(_TURN_KEYS) for t in record["texts"])


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    written = fields.array(fields.required(source, "texts", "the record"), "texts")
    turns = [turn for number, pair in enumerate(written) for turn in _pair(pair, f"texts[{number}]")]
    images = media_fields.images({"images": source.get("images")})
    tagged = any(placeholders.has_placeholder(text) for turn in turns for text in turn.pieces if isinstance(text, str))
    turns, _ = placeholders.fill(turns, images, (), add_missing=True)
    meta = fields.rest(source, _KNOWN_KEYS) | media_fields.rest({"images": source.get("images")})
    meta, dropped = media_fields.without_bytes(meta | chat_fields.meta_of_turns(written, _TURN_KEYS, "texts"))
    yield draft(turns, meta=meta, repairs=(*dropped, *(("placeholder_kept_as_text",) if tagged else ())))


def _pair(value: object, where: str) -> Iterator[Turn]:
    pair = fields.mapping(value, where)
    yield Turn("user", (fields.turn_text(pair, "user", "user", where),))
    yield Turn("assistant", (fields.turn_text(pair, "assistant", "assistant", where),))


FORMAT = Format(
    name="cauldron",
    title="Tables of images and texts: The Cauldron, FineVision, nanoVLM",
    schema='{"images": [{"bytes": BINARY, "path": NAME}] | null, "texts": [{"user": TEXT, "assistant": TEXT, "source": TEXT}]}',
    example={
        "images": ["images/chart.png"],
        "texts": [
            {"user": "Which bar is the highest?", "assistant": "The third.", "source": "charts"},
            {"user": "And the lowest?", "assistant": "The first.", "source": "charts"},
        ],
    },
    traps=(
        "all images come before the first question, and <image> in a text is only text",
        "images may be null, and the path of an image too",
    ),
    keys=_KNOWN_KEYS,
    matches=matches,
    convert=convert,
)
