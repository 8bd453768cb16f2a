"""Pages of pictures and text as two lists of equal length, of which exactly one holds something at each place.

What OBELICS and OmniCorpus have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields, media_fields
from aria_finetune.data_formats.building.turns import Piece
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import MediaReference

KEYS = frozenset({"images", "texts"})
# The paragraphs inside a text are set apart the same way.
_BETWEEN_TEXTS = "\n\n"


def are_two_lists(record: object) -> bool:
    """Whether `images` and `texts` are lists, the texts no objects, as those of the_cauldron are."""
    return (
        isinstance(record, dict)
        and all(isinstance(record.get(key), list) for key in KEYS)
        and not any(isinstance(text, dict) for text in record["texts"])
    )


def read(record: Mapping[str, Any]) -> list[str | MediaReference]:
    """The texts and images of a page in order.

    Raises:
        RecordError: `bad_schema`, lists of different length, or a place with both or neither.
    """
    images = fields.array(fields.required(record, "images", "the record"), "images")
    texts = fields.array(fields.required(record, "texts", "the record"), "texts")
    if len(images) != len(texts):
        raise RecordError("bad_schema", f"{len(images)} images and {len(texts)} texts; the lists must be equally long")
    return [_item(image, text, number) for number, (image, text) in enumerate(zip(images, texts, strict=True))]


def spaced(items: Sequence[str | MediaReference], between: str = _BETWEEN_TEXTS) -> list[Piece]:
    """The items as pieces of a turn, `between` put between texts that follow each other."""
    pieces: list[Piece] = []
    for item in items:
        if isinstance(item, str) and pieces and isinstance(pieces[-1], str):
            pieces.append(between)
        pieces.append(item)
    return pieces


def _item(image: object, text: object, number: int) -> str | MediaReference:
    if (image is None) == (text is None):
        both = "neither an image nor a text" if image is None else "both an image and a text"
        raise RecordError("bad_schema", f"place {number} holds {both}")
    if image is None:
        return fields.text(text, f"texts[{number}]")
    return media_fields.medium("image", image, f"images[{number}]")
