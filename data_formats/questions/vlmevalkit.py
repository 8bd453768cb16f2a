"""VLMEvalKit's tables: `index`, `image` or `image_path`, `question`, `hint`, options in `A`, `B`, ..., `answer`.

A cell of `image` holds a picture in Base64, or a list of pictures, or, with 64 characters or fewer, the index of the
row that holds it. Rows of Parquet files made from such tables hold the bytes of the picture.
"""

from __future__ import annotations

import binascii
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import (
    choices,
    documents,
    fields,
    image_names,
    media_bytes,
    media_fields,
    questions,
)
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

LONGEST_INDEX = 64
"""How long a cell of `image` may be that is an index and no picture."""

BORROWED = "image_of_index"
"""Where the metadata have the index of the row whose picture this row shows."""

_IMAGE_KEYS = ("image", "image_path")
_CELLS_THAT_MAY_LACK = ("hint", "answer", "image_path")
# A list of texts as Python or JSON writes it; neither Base64 nor a path has quotes in it.
_QUOTED = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)")\s*(,|$)""")


def matches(record: object) -> bool:
    """`index`, `question` and an image, and either options in `A` and `B` or nothing but text in the cells."""
    if not isinstance(record, dict) or not {"index", "question"} <= record.keys():
        return False
    if not any(key in record for key in _IMAGE_KEYS) or _is_file(record.get("image")):
        return False
    if "A" in record and "B" in record:
        return True
    return all(isinstance(cell, str | None) for cell in record.values())


def unfold(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """Every row with its picture in `image`; the index it had there is kept under `image_of_index`.

    All pictures are held, and rows only from one on whose picture is still to come.
    """
    pictures: dict[str, str] = {}
    waiting: deque[object] = deque()
    for record in records:
        _remember(record, pictures)
        waiting.append(record)
        while waiting and _is_ready(waiting[0], pictures):
            yield _with_picture(waiting.popleft(), pictures)
    while waiting:
        yield _with_picture(waiting.popleft(), pictures)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a row, with its options below it and its hint above it.

    Raises:
        RecordError: `bad_schema`, or `media_unreadable` where a picture is not Base64.
    """
    row, emptied = _without_nan(fields.mapping(record, "the row"))
    text = fields.text(fields.required(row, "question", "the row"), "question")
    text = questions.with_hint(text, fields.optional_text(row, "hint"))
    options = choices.columns(row)
    answer, references, repairs = _answer(row, options, context)
    known = ("question", "hint", "answer", "image", "image_path", *(letter for letter in row if _is_letter(letter)))
    meta, dropped = media_bytes.rest(row, known)
    asked = choices.question(text, options) if options else text
    notes = (*repairs, *emptied, *dropped)
    yield questions.asked(_images(row), asked, answer, references=references, meta=meta, repairs=notes)


def _without_nan(row: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The row without the `nan` that pandas writes for a cell with nothing in it, and the repair that counts it."""
    empty = [key for key, cell in row.items() if _is_letter(key) or key in _CELLS_THAT_MAY_LACK if _is_nan(cell)]
    return (row | dict.fromkeys(empty), ("nan_as_empty",)) if empty else (row, ())


def _is_nan(cell: object) -> bool:
    return cell == "nan" or (isinstance(cell, float) and math.isnan(cell))


def _is_letter(key: str) -> bool:
    return len(key) == 1 and "A" <= key <= "Z"


def _is_file(cell: object) -> bool:
    """Whether a cell names a file, as in other tables that have an `index` too."""
    return isinstance(cell, str) and image_names.has_ending(cell)


def _reference(record: object) -> str | None:
    """The index that a row has in place of its picture; None if it has none."""
    cell = record.get("image") if isinstance(record, dict) else None
    return cell if isinstance(cell, str) and 0 < len(cell) <= LONGEST_INDEX else None


def _remember(record: object, pictures: dict[str, str]) -> None:
    if not isinstance(record, dict) or _reference(record) is not None:
        return
    index, cell = documents.id_text(record.get("index")), record.get("image")
    if index is not None and isinstance(cell, str) and cell:
        # Two pictures under one index: an empty one stands for neither.
        pictures[index] = cell if pictures.setdefault(index, cell) == cell else ""


def _is_ready(record: object, pictures: Mapping[str, str]) -> bool:
    reference = _reference(record)
    return reference is None or reference in pictures


def _with_picture(record: object, pictures: Mapping[str, str]) -> object:
    reference = _reference(record)
    if not isinstance(record, dict) or reference is None or not pictures.get(reference):
        return record
    return record | {"image": pictures[reference], BORROWED: reference}


def _answer(
    row: Mapping[str, Any], options: list[str], context: Context
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    written = row.get("answer")
    if written is None or written == "":
        return None, (), ()
    if options:
        index = choices.index_of(fields.text(written, "answer"), options)
        return choices.answer(index, options, context.settings.answers), choices.accepted(index, options), ()
    listed = _texts(written) if isinstance(written, str) else None
    given, repairs = questions.answers(written if listed is None else listed, "answer")
    if not given:
        return None, (), ()
    return questions.majority(given), tuple(given), repairs if listed is None else ("answer_list_read",)


def _images(row: Mapping[str, Any]) -> list[MediaReference]:
    cell, paths = row.get("image"), _paths(row.get("image_path"))
    if cell is None or cell == "":
        if not paths:
            raise RecordError("bad_schema", "the row has no image")
        return [MediaReference("image", path) for path in paths]
    if not isinstance(cell, str):
        return media_fields.media("image", cell, "image")
    if len(cell) <= LONGEST_INDEX:
        raise RecordError("bad_schema", f"no row, or more than one, has the index {cell!r} and holds its own picture")
    pictures = _texts(cell) or [cell]
    if len(paths) != len(pictures):
        index = documents.id_text(row.get("index"))
        paths = [f"{index}" if len(pictures) == 1 else f"{index}_{number}" for number in range(len(pictures))]
    return [
        MediaReference("image", path, content=_decoded(picture)) for path, picture in zip(paths, pictures, strict=True)
    ]


def _paths(cell: object) -> list[str]:
    if cell is None or cell == "":
        return []
    text = fields.text(cell, "image_path")
    return [path for path in _texts(text) or [text] if path]


def _decoded(picture: str) -> bytes:
    # Python lets a superfluous = at the end pass.
    if len(picture) % 4:
        raise RecordError("media_unreadable", "image is not Base64: its length is no multiple of 4")
    try:
        return binascii.a2b_base64(picture, strict_mode=True)
    except ValueError as error:
        raise RecordError("media_unreadable", f"image is not Base64: {error!s:.100}") from error


def _texts(cell: str) -> list[str] | None:
    """The texts of a list that is written in a cell; None if the cell is no such list."""
    inner = cell.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        return None
    inner = inner[1:-1].strip()
    texts, place = [], 0
    while place < len(inner):
        found = _QUOTED.match(inner, place)
        if not found:
            return None
        texts.append(found[1] if found[1] is not None else found[2])
        place = found.end()
    return texts or None


_GREEN_SQUARE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR42mPQWBBAEmIY1TCqYfhqAAC0JBgQnTjfiQAAAABJRU5ErkJggg=="
)

FORMAT = Format(
    name="vlmevalkit",
    title="VLMEvalKit's tables",
    schema=(
        "TSV with a header: index, image (Base64, a list of it, or the index of the row that holds it) | image_path,\n"
        "question, hint, A, B, C, ..., answer, category, split"
    ),
    example={
        "index": "7",
        "image": _GREEN_SQUARE,
        "question": "Which colour is the square?",
        "hint": "",
        "A": "red",
        "B": "green",
        "answer": "B",
        "category": "colour",
    },
    traps=(
        "a cell of image with 64 characters or fewer is the index of the row that holds the picture, before or after",
        "a picture must be strict Base64: anything else in it is media_unreadable",
        "image, image_path, and answer where there are no options, may be a list in the manner of Python: ['a', 'b']",
        "a hint stands above the question on a line of its own, 'Hint: ...'; the options stand below it",
        "an option that is empty while a later one is not is bad_schema, for the letters would shift",
        "nan as a hint, option or answer, as pandas writes it, is an empty cell (nan_as_empty)",
        "a row without an image is bad_schema; one without an answer is good for evaluation only",
    ),
    keys=frozenset({"index", "image", "image_path", "question", "hint", "A", "B", "C", "D", "answer", "category"}),
    matches=matches,
    convert=convert,
    narrower_than=("image-qa", "embedded-media"),
    marks=None,
    unfold=unfold,
)
