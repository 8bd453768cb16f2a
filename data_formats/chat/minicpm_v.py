"""MiniCPM-V: chat messages under `conversations`, and several images under the placeholders that stand for them.

`{"id", "image": path | {"<image_00>": path, ...}, "conversations": [{"role", "content"}]}`
A record with one path is a chat message with a column; one with an object is made such a record first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields, media_fields
from aria_finetune.data_formats.chat import messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft

_PLACEHOLDER = re.compile(r"<image(?:_\d+)?>")
_OTHER_MEDIA = media_fields.MEDIA_KEYS - {"image"}


def matches(record: object) -> bool:
    """Chat messages under `conversations`, whose media, if any, are under `image` and no list."""
    if not isinstance(record, dict) or "messages" in record or "conversations" not in record:
        return False
    if isinstance(record.get("image"), list) or any(record.get(key) is not None for key in _OTHER_MEDIA):
        return False
    return messages.matches(record)


def marks(record: object) -> bool:
    """An object of placeholders under `image`."""
    return isinstance(record, dict) and _has_named_images(record)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one conversation of a record.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality`, or `placeholder_mismatch` where a placeholder
            has no image, or only some of the images have a placeholder.
    """
    source = fields.mapping(record, "the record")
    fields.required(source, "conversations", "the record")
    yield from messages.convert(_in_order(source) if _has_named_images(source) else source, context)


def _has_named_images(record: Mapping[str, Any]) -> bool:
    images = record.get("image")
    return isinstance(images, dict) and bool(images) and all(_PLACEHOLDER.fullmatch(name) for name in images)


def _in_order(source: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a plain `<image>` in every place, and the images in the order of the places.

    Without any place the images stay in their order, for the wider format to put them first.
    """
    # Rows of a Parquet file all have the placeholders of the longest one.
    named = {place: image for place, image in source["image"].items() if image is not None}
    turns = fields.array(source["conversations"], "conversations")
    texts = [turn["content"] for turn in turns if isinstance(turn, dict) and isinstance(turn.get("content"), str)]
    places = [place for text in texts for place in _PLACEHOLDER.findall(text)]
    _check(places, named)
    plain = [_with_plain_places(turn) for turn in turns]
    return {**source, "conversations": plain, "image": [named[place] for place in places or named]}


def _check(places: Sequence[str], named: Mapping[str, Any]) -> None:
    for place in places:
        if place not in named:
            raise RecordError("placeholder_mismatch", f"there is no image for {place:.30}")
    unused = [name for name in named if name not in places]
    if places and unused:
        raise RecordError("placeholder_mismatch", f"the image {unused[0]:.30} has no place in the text")


def _with_plain_places(turn: object) -> object:
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
        return turn
    return {**turn, "content": _PLACEHOLDER.sub("<image>", turn["content"])}


FORMAT = Format(
    name="minicpm-v",
    title="MiniCPM-V fine-tuning: images under their own placeholders",
    schema=(
        '{"id": TEXT, "image": PATH | {"<image_00>": PATH, "<image_01>": PATH},\n'
        ' "conversations": [{"role": "user" | "assistant", "content": TEXT}]}'
    ),
    example={
        "id": "0",
        "image": {"<image_00>": "images/spring.jpg", "<image_01>": "images/autumn.jpg"},
        "conversations": [
            {"role": "user", "content": "<image_01>\n<image_00>\nWhich of the two is spring?"},
            {"role": "assistant", "content": "The second."},
        ],
    },
    traps=(
        "the order of the images is that of their placeholders in the text, not that of the object",
        "a placeholder used twice shows its image twice; the image is kept once",
        "no placeholder at all: the images go before the first user text (placeholder_added)",
        "a placeholder without an image, or some images without a placeholder, is placeholder_mismatch",
        "a file whose images are all single paths is read as messages, with the same result",
    ),
    keys=frozenset({"id", *messages.FORMAT.keys}),
    matches=matches,
    convert=convert,
    narrower_than=("messages",),
    marks=marks,
)
