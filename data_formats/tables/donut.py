"""Donut: an image of a document and what is written in it, as JSON under `gt_parse`.

`{"file_name": path | "image": image, "ground_truth": {"gt_parse": object} | {"gt_parses": [object]}}`, where
`ground_truth` is JSON text in Donut itself and an object in some data sets made for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes, media_fields, strict_json
from aria_finetune.data_formats.building.questions import asked
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference
from aria_finetune.data_formats.tables import imagefolder

PARSE_PROMPT = "Write out the fields of the document as JSON."
_PARSE_KEYS = ("gt_parse", "gt_parses")
_FOREIGN_KEYS = frozenset({"messages", "conversations", "conversation", "question", "prompt"})


def matches(record: object) -> bool:
    """`ground_truth` beside the image, which is a file name or lies in the row."""
    if not isinstance(record, dict) or "ground_truth" not in record or not _FOREIGN_KEYS.isdisjoint(record):
        return False
    return "image" in record or any(map(imagefolder.is_file_column, record))


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The fields of a document as JSON text, or one conversation for each question of a document with questions.

    Raises:
        RecordError: `bad_schema`, or `unsupported_modality`.
    """
    source = fields.mapping(record, "the record")
    if "image" in source:
        used, image = ["image"], media_fields.media("image", source["image"], "image")
    else:
        used, image = [key for key in source if imagefolder.is_file_column(key)], imagefolder.files(source)
    if not image:
        raise RecordError("bad_schema", "the record has no image")
    truth, repairs = _truth(fields.required(source, "ground_truth", "the record"))
    meta, dropped = media_bytes.rest(source, {*used, "ground_truth"})
    yield from _drafts(image, truth, meta | _rest_of(truth), (*repairs, *dropped))


def _truth(value: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not isinstance(value, str):
        return fields.mapping(value, "ground_truth"), ()
    try:
        truth = fields.mapping(strict_json.loads(value), "ground_truth")
    except (json.JSONDecodeError, strict_json.StrictJSONError) as error:
        raise RecordError("bad_schema", f"ground_truth is text and not JSON: {error}") from error
    return truth, () if _written(truth) == value else ("json_rewritten",)


def _rest_of(truth: Mapping[str, Any]) -> dict[str, Any]:
    """What some data sets keep beside the parse, as the boxes of CORD, which is not what is to be read."""
    beside = fields.rest(truth, _PARSE_KEYS)
    return {"ground_truth": beside} if beside and len(beside) < len(truth) else {}


def _drafts(
    image: list[MediaReference], truth: dict[str, Any], meta: Mapping[str, Any], repairs: tuple[str, ...]
) -> Iterator[Draft]:
    parses = _parses(truth)
    if parses and all(map(_is_question, parses)):
        answers: dict[str, list[str]] = {}
        for parse in parses:
            answers.setdefault(parse["question"], []).append(parse["answer"])
        for question, accepted in answers.items():
            yield asked(image, question, accepted[0], references=accepted, meta=meta, repairs=repairs)
        return
    written = [_written({"gt_parse": parse}) for parse in parses] or [_written(truth)]
    yield asked(image, PARSE_PROMPT, written[0], references=written, meta=meta, repairs=repairs)


def _parses(truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = [key for key in _PARSE_KEYS if truth.get(key) is not None]
    if len(given) > 1:
        raise RecordError("bad_schema", "ground_truth has both 'gt_parse' and 'gt_parses'")
    if not given:
        return []
    if given[0] == "gt_parse":
        return [fields.mapping(truth["gt_parse"], "gt_parse")]
    parses = fields.array(truth["gt_parses"], "gt_parses")
    if not parses:
        raise RecordError("bad_schema", "gt_parses is empty")
    return [fields.mapping(parse, f"gt_parses[{number}]") for number, parse in enumerate(parses)]


def _written(value: Mapping[str, Any]) -> str:
    """JSON text in the spelling of Python's own writer, which Donut's data sets were made with."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:  # a column of a table, not JSON
        raise RecordError("bad_schema", f"ground_truth holds what JSON can't: {error}") from error


def _is_question(parse: Mapping[str, Any]) -> bool:
    return parse.keys() == {"question", "answer"} and all(isinstance(value, str) for value in parse.values())


FORMAT = Format(
    name="donut",
    title="Donut, images of documents and their fields as JSON",
    schema=(
        '{"file_name": PATH | "image": {"bytes": BYTES, "path": PATH},\n'
        ' "ground_truth": JSON TEXT | OBJECT of {"gt_parse": OBJECT} | {"gt_parses": [OBJECT]}}'
    ),
    example={
        "file_name": "receipt.png",
        "ground_truth": '{"gt_parse": {"menu": [{"name": "Tea", "price": "2.50"}], "total": "2.50"}}',
    },
    traps=(
        "the answer is {'gt_parse': ...} as JSON text; what lies beside it in ground_truth is kept as metadata",
        "JSON text that is written in another way, as with \\u escapes, is written anew (json_rewritten)",
        "of several gt_parses the first is the answer, and all are accepted answers",
        "parses of nothing but question and answer become that question, with all its answers accepted",
    ),
    keys=frozenset({"file_name", "image", "ground_truth"}),
    matches=matches,
    convert=convert,
)
