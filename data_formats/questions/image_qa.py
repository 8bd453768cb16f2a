"""Records of an image, a question and an answer, in their many spellings, and answers in a second file.

`{"image" | "images" | "image_path", "question", "answer" | "gold" | "answers"}`, as JSON, a table or Parquet. Where the
question is called `text` there is a `question_id`, as in LLaVA's benchmarks. Options to choose from stand in `options`,
`choices`, or fields `A`, `B`, ... A file of questions alone is joined with its file of answers by `question_id`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aria_finetune.data_formats.building import (
    choices,
    documents,
    fields,
    media_bytes,
    media_fields,
    placeholders,
    preference_keys,
    questions,
    strict_json,
)
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Companion, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

IMAGE_KEYS = ("image", "images", "image_path")
_ANSWER_KEYS = ("answer", "gold")
# LLaVA calls the answers of its files `text`, as it does the questions.
_ROW_ANSWER_KEYS = (*_ANSWER_KEYS, "text")
_LIST_KEY = "answers"
_ALL_ROW_KEYS = (*_ROW_ANSWER_KEYS, _LIST_KEY)
_OPTION_KEYS = ("options", "choices")
# A record with one of these is of another format, whatever else it has.
_FOREIGN_KEYS = frozenset({"conversations", "conversation", "messages", "imgname", "qas", "__key__"})


@dataclass(frozen=True, slots=True)
class _Answers:
    """The answer to train on, None if there is none; what counts as right; and the repairs made."""

    chosen: str | None
    accepted: tuple[str, ...]
    repairs: tuple[str, ...]


def matches(record: object) -> bool:
    """An image, and `question`, or `text` with a `question_id` and without a `label`."""
    if not isinstance(record, dict) or not any(key in record for key in IMAGE_KEYS):
        return False
    if not _FOREIGN_KEYS.isdisjoint(record) or preference_keys.is_preference(record):
        return False
    if any(record.get(key) is not None for key in media_fields.VIDEO_KEYS):
        return False
    return "question" in record or ("text" in record and "question_id" in record and "label" not in record)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one question of a record, with its answer if it or the companion has one.

    Raises:
        RecordError: `bad_schema`, or `placeholder_mismatch` where `<image>` stands in the question and not as often as
            there are images.
    """
    source = fields.mapping(record, "the record")
    media_fields.refuse_audio(source)
    key = "question" if "question" in source else "text"
    text = fields.text(fields.required(source, key, "the record"), key)
    options = _options(source)
    row = _row_of_answers(source, context)
    keys = _ANSWER_KEYS if row is None else _ROW_ANSWER_KEYS
    answers = _answers(source if row is None else row, keys, options, context)
    meta, dropped = media_fields.without_bytes(_meta(source, row, key))
    asked = _asked(choices.question(text, options) if options else text, _images(source))
    turns = [asked] if answers.chosen is None else [asked, Turn("assistant", (answers.chosen,))]
    yield draft(turns, references=answers.accepted, meta=meta, repairs=(*answers.repairs, *dropped))


def answers_name(names: list[str], source: str) -> str | None:
    """The file of answers beside `source`: its name with `answer` for `question`, of either ending of JSON."""
    if "question" not in source:
        return None
    name = source.replace("question", "answer")
    stem = name.removesuffix("l").removesuffix(".json")
    return next((name for name in (name, f"{stem}.jsonl", f"{stem}.json") if name in names), None)


def fits(record: object) -> bool:
    """Whether a record is one of a file of answers."""
    return isinstance(record, dict) and "question_id" in record and any(key in record for key in _ALL_ROW_KEYS)


def build(records: Iterator[object]) -> documents.Table:
    """The rows of answers by `question_id`."""
    return documents.table(records, "question_id")


def _options(source: Mapping[str, Any]) -> list[str]:
    keys = [key for key in _OPTION_KEYS if source.get(key)]
    if len(keys) > 1:
        raise RecordError("bad_schema", "both 'options' and 'choices' are given")
    if not keys:
        return choices.columns(source) if "A" in source and "B" in source else []
    value = source[keys[0]]
    if isinstance(value, str):
        try:
            value = strict_json.loads(value)
        except (json.JSONDecodeError, strict_json.StrictJSONError) as error:
            raise RecordError("bad_schema", f"{keys[0]} is text and not a list in JSON") from error
    listed = fields.array(value, keys[0])
    options = [fields.text(option, f"{keys[0]}[{number}]") for number, option in enumerate(listed)]
    return choices.without_letters(options)


def _row_of_answers(source: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
    if any(key in source for key in (*_ANSWER_KEYS, _LIST_KEY)):
        return None
    return documents.joined(context.tables.get("answers", {}), source.get("question_id"), "answers")


def _answers(row: Mapping[str, Any], keys: tuple[str, ...], options: list[str], context: Context) -> _Answers:
    """What the record, or its row in the file of answers, says under one of `keys` and under `answers`."""
    single_keys = [key for key in keys if row.get(key) is not None]
    if any(row[key] != row[single_keys[0]] for key in single_keys):
        raise RecordError("bad_schema", f"{' and '.join(map(repr, single_keys))} are both given and differ")
    value = row[single_keys[0]] if single_keys else None
    if options and isinstance(value, int) and not isinstance(value, bool):
        return _option(_index(value, options), options, context)
    own, repairs = questions.answers(value, single_keys[0] if single_keys else "answer")
    listed, more = questions.answers(row.get(_LIST_KEY), _LIST_KEY)
    if not own and not listed:
        return _Answers(None, (), ())
    chosen = questions.majority(own or listed)
    if options and chosen.strip():
        return _option(choices.index_of(chosen, options), options, context)
    accepted = listed if chosen in listed else [*own, *listed]
    return _Answers(chosen, tuple(accepted), tuple(dict.fromkeys((*repairs, *more))))


def _option(index: int, options: list[str], context: Context) -> _Answers:
    return _Answers(choices.answer(index, options, context.settings.answers), choices.accepted(index, options), ())


def _index(number: int, options: list[str]) -> int:
    """The option a number means: it counts from 0, unless it may just as well be the text of another option."""
    if str(number) in options and options.index(str(number)) != number:
        raise RecordError("bad_schema", f"the answer {number} may be the number of an option or the text of another")
    return number


def _meta(source: Mapping[str, Any], row: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
    known: tuple[str, ...] = (key, *IMAGE_KEYS, *_ANSWER_KEYS, *_OPTION_KEYS)
    if not questions.says_more(source.get(_LIST_KEY)):
        known = (*known, _LIST_KEY)
    rest = fields.rest(source, known)
    if row is None:
        return rest
    return documents.together(rest, fields.rest(row, _ALL_ROW_KEYS), "answer_row")


def _asked(text: str, images: list[MediaReference]) -> Turn:
    if not placeholders.has_placeholder(text):
        return Turn("user", (*images, text))
    turns, _ = placeholders.fill([placeholders.split(Turn("user", (text,)))], images, [], add_missing=False)
    return turns[0]


def _images(source: Mapping[str, Any]) -> list[MediaReference]:
    """The images of a record; an empty cell of a table is no image."""
    if not any(key in source for key in IMAGE_KEYS):
        raise RecordError("bad_schema", "the record names no image")
    keys = [key for key in IMAGE_KEYS if source.get(key) not in (None, "")]
    if not keys:
        return []
    if "image" in keys and "image_path" in keys and media_bytes.is_embedded(source["image"]):
        keys.remove("image_path")
    if len(keys) > 1:
        raise RecordError("bad_schema", f"{' and '.join(map(repr, keys))} both name images")
    return media_fields.media("image", source[keys[0]], keys[0])


FORMAT = Format(
    name="image-qa",
    title="An image, a question and an answer; also with options, and with the answers in a second file",
    schema=(
        '{"image" | "image_path": PATH | [PATH], "question": TEXT, "answer" | "gold": TEXT | NUMBER,\n'
        ' "answers": [TEXT], "options" | "choices": [TEXT], "question_id": ID}\n'
        'or questions {"question_id": ID, "image": PATH, "text" | "question": TEXT}\n'
        'and answers {"question_id": ID, "text" | "answer": TEXT} in two files'
    ),
    example={"image": "images/chart.png", "question": "Which bar is the highest?", "answer": "2019"},
    traps=(
        "the images stand before the question, unless <image> in it marks their places",
        "answers, or a list as the answer: the one given most often is trained on, all are references",
        "a number as the answer becomes its text (number_as_text)",
        "with options the answer is the text, the letter or, as a number in JSON, the place from 0 of one of them",
        "an answer that may mean two of the options is bad_schema",
        "answer and gold that differ are bad_schema",
        "without any answer, and without a file of answers, records are good for evaluation only",
    ),
    keys=frozenset({*IMAGE_KEYS, "question", "text", *_ANSWER_KEYS, _LIST_KEY, *_OPTION_KEYS, "question_id"}),
    matches=matches,
    convert=convert,
    narrower_than=("embedded-media",),
    marks=None,
    companions=(
        Companion(
            name="answers",
            beside="the source's name with 'answer' for 'question', .json or .jsonl",
            find=answers_name,
            fits=fits,
            build=build,
        ),
    ),
)
