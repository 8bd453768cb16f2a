"""OmniCorpus: web pages in OBELICS' two lists, with metadata as real lists and objects, and images marked invalid.

Its own loader keeps each downloaded image under the SHA-256 of its URL and leaves out those that `valid_image`
marks; both are done here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.documents import two_lists
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_KNOWN_KEYS = frozenset({*two_lists.KEYS, "valid_image"})


def matches(record: object) -> bool:
    """Two lists with metadata as a list, `general_metadata` as an object, or `valid_image`."""
    return (
        isinstance(record, dict)
        and two_lists.are_two_lists(record)
        and (
            isinstance(record.get("metadata"), list)
            or isinstance(record.get("general_metadata"), dict)
            or "valid_image" in record
        )
    )


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one page of a record.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    items = two_lists.read(source)
    kept = _without_invalid(items, source)
    pieces = two_lists.spaced([_with_stored_name(item) for item in kept])
    meta, repairs = media_bytes.rest(source, _KNOWN_KEYS)
    if len(kept) < len(items):
        repairs = (*repairs, "invalid_image_dropped")
    yield draft([Turn("assistant", tuple(pieces))], meta=meta, repairs=repairs, document=True)


def _without_invalid(
    items: Sequence[str | MediaReference], source: Mapping[str, Any]
) -> Sequence[str | MediaReference]:
    if source.get("valid_image") is None:
        return items
    flags = fields.array(source["valid_image"], "valid_image")
    if not all(isinstance(flag, bool) for flag in flags):
        raise RecordError("bad_schema", "valid_image is not a list of true and false")
    images = sum(isinstance(item, MediaReference) for item in items)
    if len(flags) != images:
        raise RecordError("bad_schema", f"valid_image has {len(flags)} entries for {images} images")
    valid = iter(flags)
    return [item for item in items if isinstance(item, str) or next(valid)]


def _with_stored_name(item: str | MediaReference) -> str | MediaReference:
    if isinstance(item, str) or "://" not in item.reference:
        return item
    stored = hashlib.sha256(item.reference.encode("utf-8", "surrogatepass")).hexdigest()
    return replace(item, alternatives=(stored, f"images/{stored}"))


FORMAT = Format(
    name="omnicorpus",
    title="OmniCorpus, web pages of text and images",
    schema=(
        '{"images": [URL | PATH | null], "texts": [TEXT | null],   equally long, exactly one of both at each place\n'
        ' "metadata": [OBJECT | null], "general_metadata": OBJECT, "valid_image": [true | false], one per image}'
    ),
    example={
        "images": ["images/bridge.jpg", None],
        "texts": [None, "The bridge from the south."],
        "metadata": [{"original_width": 640, "original_height": 480}, None],
        "general_metadata": {"id": "0", "url": "https://example.org/bridge"},
        "valid_image": [True],
    },
    traps=(
        "there is no question: a page becomes one document, to be gone on with, in a single assistant message",
        "an image that is a URL is looked for as a file named by the SHA-256 of that URL, as OmniCorpus stores it",
        "an image that valid_image marks false is left out (invalid_image_dropped)",
        "texts that follow each other are set apart by an empty line",
    ),
    keys=frozenset({*_KNOWN_KEYS, "metadata", "general_metadata"}),
    matches=matches,
    convert=convert,
)
