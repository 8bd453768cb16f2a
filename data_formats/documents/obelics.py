"""OBELICS: web pages as two lists, `images` and `texts`, with one of both at each place.

`{"images": [url | null], "texts": [text | null], "metadata": JSON text, "general_metadata": JSON text}`
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.documents import two_lists
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft


def matches(record: object) -> bool:
    """Two lists, and none of what OmniCorpus adds: metadata as a list, an object beside it, or `valid_image`."""
    return (
        isinstance(record, dict)
        and two_lists.are_two_lists(record)
        and not isinstance(record.get("metadata"), list)
        and not isinstance(record.get("general_metadata"), dict)
        and "valid_image" not in record
    )


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one page of a record.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    pieces = two_lists.spaced(two_lists.read(source))
    meta, repairs = media_bytes.rest(source, two_lists.KEYS)
    yield draft([Turn("assistant", tuple(pieces))], meta=meta, repairs=repairs, document=True)


FORMAT = Format(
    name="obelics",
    title="OBELICS, web pages of text and images",
    schema=(
        '{"images": [URL | PATH | null], "texts": [TEXT | null],   equally long, exactly one of both at each place\n'
        ' "metadata": JSON TEXT, "general_metadata": JSON TEXT}'
    ),
    example={
        "images": [None, "images/harbour.jpg", None],
        "texts": ["The harbour was built in 1870.", None, "Today it is a park."],
        "metadata": '[null, {"alt_text": "the old harbour"}, null]',
        "general_metadata": '{"url": "https://example.org/harbour"}',
    },
    traps=(
        "there is no question: a page becomes one document, to be gone on with, in a single assistant message",
        "images are URLs as published, which are media_remote; put the names of downloaded files in their place",
        "texts that follow each other are set apart by an empty line",
        "metadata and general_metadata stay JSON text among the metadata",
    ),
    keys=frozenset({*two_lists.KEYS, "metadata", "general_metadata"}),
    matches=matches,
    convert=convert,
)
