"""MMC4 (Multimodal C4): the sentences of a web page, and images each matched to one of them.

`{"text_list": [sentence], "image_info": [{"image_name", "raw_url", "matched_text_index", "matched_sim"}]}`
An image goes before its sentence. The order of `image_info` is not the order in the text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.documents import two_lists
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_BETWEEN_SENTENCES = " "


def matches(record: object) -> bool:
    """`text_list` and `image_info`."""
    return isinstance(record, dict) and {"text_list", "image_info"} <= record.keys()


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one page of a record.

    Raises:
        RecordError: `bad_schema`, also for an image matched to a sentence that is not there.
    """
    source = fields.mapping(record, "the record")
    listed = fields.array(fields.required(source, "text_list", "the record"), "text_list")
    sentences = [fields.text(sentence, f"text_list[{number}]") for number, sentence in enumerate(listed)]
    described = fields.array(fields.required(source, "image_info", "the record"), "image_info")
    images: defaultdict[int, list[MediaReference]] = defaultdict(list)
    for number, value in enumerate(described):
        info = fields.mapping(value, f"image_info[{number}]")
        images[_sentence_of(info, len(sentences), f"image_info[{number}]")].append(_image(info, number))
    items: list[str | MediaReference] = []
    for number, sentence in enumerate(sentences):
        items += [*images[number], sentence]
    pieces = two_lists.spaced(items, _BETWEEN_SENTENCES)
    meta, repairs = media_bytes.rest(source, ("text_list",))
    yield draft([Turn("assistant", tuple(pieces))], meta=meta, repairs=repairs, document=True)


def _sentence_of(info: dict[str, Any], sentences: int, where: str) -> int:
    index = fields.required(info, "matched_text_index", where)
    if not isinstance(index, int) or isinstance(index, bool):
        raise fields.wrong(index, f"{where}.matched_text_index", "a whole number")
    if not 0 <= index < sentences:
        raise RecordError("bad_schema", f"{where} is matched to sentence {index} of {sentences}, counted from 0")
    return index


def _image(info: dict[str, Any], number: int) -> MediaReference:
    name = fields.optional_text(info, "image_name")
    if name:
        return MediaReference("image", name, alternatives=(f"images/{name}",))
    url = fields.optional_text(info, "raw_url")
    if url:
        return MediaReference("image", url)
    raise RecordError("bad_schema", f"image_info[{number}] has neither 'image_name' nor 'raw_url'")


FORMAT = Format(
    name="mmc4",
    title="MMC4 (Multimodal C4), web pages of sentences and matched images",
    schema=(
        '{"text_list": [SENTENCE],\n'
        ' "image_info": [{"image_name": NAME, "raw_url": URL, "matched_text_index": NUMBER, "matched_sim": NUMBER}],\n'
        ' "similarity_matrix": [[NUMBER]], "url": URL}'
    ),
    example={
        "url": "https://example.org/garden",
        "text_list": ["This is the garden.", "The gate stands on the left."],
        "image_info": [
            {
                "image_name": "gate.jpg",
                "raw_url": "https://example.org/gate.jpg",
                "matched_text_index": 1,
                "matched_sim": 0.29,
            }
        ],
        "similarity_matrix": [[0.2, 0.29]],
    },
    traps=(
        "there is no question: a page becomes one document, to be gone on with, in a single assistant message",
        "an image stands before the sentence it is matched to, whatever its place in image_info",
        "images are published as URLs only: files named image_name are expected beside the source or in images/",
        "sentences that follow each other are set apart by a space",
    ),
    keys=frozenset({"text_list", "image_info", "similarity_matrix", "url", "could_have_url_duplicate"}),
    matches=matches,
    convert=convert,
)
