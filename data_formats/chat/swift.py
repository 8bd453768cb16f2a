"""ms-swift's own two forms: query with response and history, and conversations of human and assistant pairs.

Its `messages` and its Alpaca form are read as the formats of these names. `<image>` and `<video>` are the places
of the media beside the text, which go first where there are none; `<img>NAME</img>` in a question is an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from aria_finetune.data_formats.building import chat_fields, fields, instructions, preference_keys
from aria_finetune.data_formats.building.turns import Piece, Turn
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference, PartType

_KNOWN_KEYS = frozenset({"query", "response", *instructions.KNOWN_KEYS})
_ALONE_KEYS = _KNOWN_KEYS | {"id", "objects"}
_PAIRS_KEYS = frozenset({"conversation", *instructions.KNOWN_KEYS}) - {"history"}
_QUESTION_KEYS = ("human", "user", "tool")
_ANSWER_KEYS = ("assistant", "gpt", "bot")
_NAMED_IN_TEXT = re.compile(r"<(img|video|audio)>(.+?)</\1>", re.DOTALL)
_KIND_OF_TAG: dict[str, PartType] = {"img": "image", "video": "video"}


def matches(record: object) -> bool:
    """`query` with `response`, or one of them among nothing but known keys."""
    if not isinstance(record, dict) or preference_keys.is_preference(record):
        return False
    given = {"query", "response"} & record.keys()
    return len(given) == 2 or (len(given) == 1 and record.keys() <= _ALONE_KEYS)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record, after the turns of its `history`.

    A row without a query, a history and a system prompt is text to pretrain on, as ms-swift has it.

    Raises:
        RecordError: `bad_schema`, `bad_roles`, `unsupported_modality` or `placeholder_mismatch`.
    """
    source = fields.mapping(record, "the record")
    answer, references, repairs = instructions.answers(source.get("response"), "response")
    turns = instructions.history(source)
    if source.get("query") is None:
        if turns or chat_fields.system_turn(source) or "response" not in source:
            raise RecordError("bad_roles", "there is no query that the response answers")
        yield instructions.document(source, answer, _KNOWN_KEYS, references=references, repairs=repairs)
        return
    turns.append(Turn("user", (fields.text(source["query"], "query"),)))
    if "response" in source:
        turns.append(Turn("assistant", (answer,)))
    turns = [_with_named_media(turn) for turn in turns]
    yield instructions.conversation(source, turns, _KNOWN_KEYS, references=references, repairs=repairs)


def matches_pairs(record: object) -> bool:
    """A `conversation` of objects with `human` or `user` and `assistant`, `gpt` or `bot`, and no role."""
    if not isinstance(record, dict) or preference_keys.is_preference(record):
        return False
    pairs = record.get("conversation")
    if not isinstance(pairs, list):
        return False
    keys = [pair.keys() for pair in pairs if isinstance(pair, dict)]
    return bool(keys) and all(found & {*_QUESTION_KEYS, *_ANSWER_KEYS} and "role" not in found for found in keys)


def convert_pairs(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one conversation of a record; raises as `convert` does."""
    source = fields.mapping(record, "the record")
    pairs = fields.array(fields.required(source, "conversation", "the record"), "conversation")
    turns = [turn for number, pair in enumerate(pairs) for turn in _pair(pair, f"conversation[{number}]")]
    extra = chat_fields.meta_of_turns(pairs, (*_QUESTION_KEYS, *_ANSWER_KEYS), "conversation")
    turns = [_with_named_media(turn) for turn in turns]
    known = _PAIRS_KEYS - extra.keys()
    yield instructions.conversation(source | extra, turns, known)


def _pair(value: object, where: str) -> Iterator[Turn]:
    pair = fields.mapping(value, where)
    key = _only(pair, _QUESTION_KEYS, where)
    yield Turn("tool" if key == "tool" else "user", (fields.text(pair[key], f"{where}.{key}"),))
    if not pair.keys() & set(_ANSWER_KEYS):  # the last one of records for evaluation
        return
    key = _only(pair, _ANSWER_KEYS, where)
    yield Turn("assistant", (fields.turn_text(pair, key, "assistant", where),))


def _only(pair: Mapping[str, Any], keys: tuple[str, ...], where: str) -> str:
    given = [key for key in keys if key in pair]
    if len(given) != 1:
        raise RecordError("bad_schema", f"{where} needs one of {', '.join(map(repr, keys))}")
    return given[0]


def _with_named_media(turn: Turn) -> Turn:
    """The turn with the media that its question names between tags."""
    if turn.role != "user":
        return turn
    return replace(turn, pieces=tuple(piece for text in turn.pieces if isinstance(text, str) for piece in _split(text)))


def _split(text: str) -> Iterator[Piece]:
    end = 0
    for found in _NAMED_IN_TEXT.finditer(text):
        if found[1] not in _KIND_OF_TAG:
            raise RecordError("unsupported_modality", f"<{found[1]}>: Aria does not hear")
        yield text[end : found.start()]
        yield MediaReference(_KIND_OF_TAG[found[1]], found[2])
        end = found.end()
    yield text[end:]


SWIFT = Format(
    name="swift",
    title="ms-swift's query, response and history",
    schema=(
        '{"system": TEXT, "query": TEXT, "response": TEXT | [TEXT], "history": [[QUESTION, ANSWER]],\n'
        ' "images": [PATH], "videos": [PATH], "tools": JSON, "objects": {"ref", "bbox", "bbox_type", "image_id"}}'
    ),
    example={
        "system": "Answer with one word.",
        "query": "And what stands <image>on this one?",
        "response": "Flowers.",
        "history": [["<image>What stands on the table?", "Books."]],
        "images": ["images/table.jpg", "images/shelf.jpg"],
    },
    traps=(
        "without any placeholder the media go before the first question (placeholder_added)",
        "surplus placeholders, which ms-swift leaves as text, are placeholder_mismatch",
        "<img>NAME</img> in a question is an image at that place",
        "of a list of responses the first is trained on, and all are references (first_of_several_answers)",
        "a response alone, without query, history and system prompt, is text to pretrain on (read_as_document)",
        "an empty query is bad_roles",
        "boxes stay in the metadata with their coordinate system, and <bbox> in text stays as it is",
        "a Python literal in a cell of history is bad_schema; JSON is read",
    ),
    keys=_KNOWN_KEYS | {"objects"},
    matches=matches,
    convert=convert,
)

PAIRS = Format(
    name="swift-pairs",
    title="ms-swift's conversations of human and assistant pairs",
    schema='{"system": TEXT, "conversation": [{"human" | "user" | "tool": TEXT, "assistant": TEXT}], "images": [PATH]}',
    example={
        "system": "You are a guide.",
        "conversation": [
            {"human": "When does the tower open?", "assistant": "At ten."},
            {"human": "And on Sundays?", "assistant": "At noon."},
        ],
    },
    traps=(
        "conversation holds pairs and no roles; with role and content it is the format messages",
        "media and placeholders as in swift",
    ),
    keys=_PAIRS_KEYS,
    matches=matches_pairs,
    convert=convert_pairs,
)

FORMATS = (SWIFT, PAIRS)
