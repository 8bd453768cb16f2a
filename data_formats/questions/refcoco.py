"""RefCOCO as MiniGPT-4 keeps it: an expression for a thing in a COCO image, and the box around that thing.

`{"img_id": "COCO_train2014_000000000042_3", "sents": TEXT, "bbox": [x, y, width, height], "height", "width"}`
The answer is the box as the source gives it. Aria itself writes boxes as `(x1,y1),(x2,y2)` in thousandths of width
and height, 0 to 999; that form is kept beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from aria_finetune.data_formats.building import fields, image_names, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

COORDINATES = "xywh pixels"
ARIA_COORDINATES = "(x1,y1),(x2,y2), 0-999 of width and height"
_ARIA_SCALE = 999
_LARGEST_PIXEL = 10**9
_KEYS = frozenset({"img_id", "sents", "bbox", "height", "width"})
# The number of the thing stands behind that of the image.
_COCO_THING = re.compile(r"COCO_([a-z]+20\d\d)_(\d{12})(?:_\d+)?")


def matches(record: object) -> bool:
    """`img_id`, `sents` and `bbox`."""
    return isinstance(record, dict) and {"img_id", "sents", "bbox"} <= record.keys()


def convert(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One conversation for every expression of a record.

    Raises:
        RecordError: `bad_schema`, the record as a whole has no image, box or expression.
    """
    source = fields.mapping(record, "the record")
    image = _image(source)
    box = _box(source)
    expressions = fields.required(source, "sents", "the record")
    if isinstance(expressions, str):
        yield _draft(image, source, box, expressions)
        return
    given = fields.array(expressions, "sents")
    if not given:
        raise RecordError("bad_schema", "sents is empty")
    for number, expression in enumerate(given):
        try:
            yield _draft(image, source, box, fields.text(expression, f"sents[{number}]"))
        except RecordError as error:
            yield error


def _draft(image: MediaReference, source: Mapping[str, Any], box: list[int | float], expression: str) -> Draft:
    written, clipped = _for_aria(box, source)
    meta = fields.rest(source, ("sents",)) | {"coordinates": COORDINATES}
    if written:
        meta |= {"aria_box": written, "aria_coordinates": ARIA_COORDINATES}
    answer = json.dumps(source["bbox"])
    repairs = ("box_outside_image",) if clipped else ()
    return questions.asked([image], expression, answer, references=(answer,), meta=meta, repairs=repairs)


def _image(source: Mapping[str, Any]) -> MediaReference:
    name = fields.required(source, "img_id", "the record")
    found = _COCO_THING.fullmatch(name) if isinstance(name, str) else None
    if found:
        return image_names.coco(int(found[2]), found[1])
    return image_names.of_id(name, "img_id", hints=("train2014",))


def _box(source: Mapping[str, Any]) -> list[int | float]:
    box = fields.array(fields.required(source, "bbox", "the record"), "bbox")
    if len(box) != 4 or not all(_is_pixel(number) for number in box):
        raise RecordError("bad_schema", "bbox is not [x, y, width, height] in pixels")
    return box


def _for_aria(box: list[int | float], source: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The box as Aria writes it, None if the size of the image is not known, and whether it leaves the image."""
    width, height = source.get("width"), source.get("height")
    if not _is_pixel(width) or not _is_pixel(height) or width <= 0 or height <= 0:
        return None, False
    x, y, across, down = box
    shares = (x / width, y / height, (x + across) / width, (y + down) / height)
    x1, y1, x2, y2 = (round(min(max(share, 0), 1) * _ARIA_SCALE) for share in shares)
    outside = any(not 0 <= round(share * _ARIA_SCALE) <= _ARIA_SCALE for share in shares)
    return f"({x1},{y1}),({x2},{y2})", outside


def _is_pixel(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_PIXEL


FORMAT = Format(
    name="refcoco",
    title="RefCOCO, RefCOCO+ and RefCOCOg as MiniGPT-4 keeps them",
    schema='{"img_id": NAME, "sents": TEXT | [TEXT], "bbox": [X, Y, WIDTH, HEIGHT], "height": PIXELS, "width": PIXELS}',
    example={
        "img_id": "COCO_train2014_000000000042_3",
        "sents": "the dog on the left",
        "bbox": [64.0, 120.0, 160.0, 240.0],
        "height": 480,
        "width": 640,
    },
    traps=(
        "the answer is bbox as it stands: left, top, width and height in pixels",
        "the metadata have it in Aria's own form too, (x1,y1),(x2,y2) on a scale of 0 to 999, as aria_box",
        "img_id ends in the number of the thing (_3), the file does not; it is looked for in train2014/ as well",
        "several expressions in sents are as many conversations",
        "a box that leaves the image is kept and counted as box_outside_image; aria_box ends at the border",
    ),
    keys=_KEYS,
    matches=matches,
    convert=convert,
)
