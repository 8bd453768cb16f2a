"""ScienceQA: multiple-choice problems by their number in one object, about half of them with an image.

`{pid: {"question", "choices": [TEXT], "answer": NUMBER, "hint", "image": NAME | null, "lecture", "solution", "split"}}`
MathVista writes its problems alike; there `choices` may be null and `answer` text. The rows of a Parquet file are
single problems that hold their image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import choices, documents, fields, media_fields, questions
from aria_finetune.data_formats.format import PLAIN, Companion, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_PROBLEM_KEYS = ("question", "choices")
_ROW_KEYS = frozenset({"lecture", "solution"})
_SPLITS = ("train", "val", "test")
_SPLITS_FILE = "pid_splits.json"
_SEEN_KEYS = {"problem", "pid", "split"}


def matches(record: object) -> bool:
    """An object of objects with `question` and `choices`, or one such with `lecture` or `solution`."""
    if not isinstance(record, dict) or not record:
        return False
    if all(key in record for key in _PROBLEM_KEYS) and not _ROW_KEYS.isdisjoint(record):
        return True
    head = list(record.values())[: documents.SEEN_ENTRIES]
    return all(isinstance(problem, dict) and all(key in problem for key in _PROBLEM_KEYS) for problem in head)


def unfold(records: Iterator[object], context: Context) -> Iterator[object]:
    """Every problem with its number, and its split where the problem does not say it."""
    splits = context.tables.get("splits", {})
    for record in records:
        if not isinstance(record, dict) or all(key in record for key in _PROBLEM_KEYS):
            yield record
            continue
        for pid, problem in record.items():
            yield {"problem": problem, "pid": pid, "split": splits.get(pid)}


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """One problem: the hint, the question and the lettered options, and the option that is right.

    Raises:
        RecordError: `bad_schema`.
    """
    problem, pid, split = _parts(record)
    text = fields.text(fields.required(problem, "question", "the problem"), "question")
    text = questions.with_hint(text, fields.optional_text(problem, "hint"))
    options = _options(problem)
    answer, references, repairs = _answer(problem, options, context)
    rest = fields.rest(problem, ("question", "choices", "answer", "hint", "image"))
    meta, dropped = media_fields.without_bytes(({} if pid is None else {"pid": pid}) | rest)
    asked = choices.question(text, options) if options else text
    images = _images(problem, pid, split)
    yield questions.asked(images, asked, answer, references=references, meta=meta, repairs=(*repairs, *dropped))


def build(records: Iterator[object]) -> dict[str, str]:
    """The split of every problem; small splits that repeat problems of others, as minival, are left out."""
    lists = [record for record in records if isinstance(record, dict)]
    return {
        str(pid): split
        for record in lists
        for split in _SPLITS
        if isinstance(record.get(split), list)
        for pid in record[split]
    }


def _parts(record: object) -> tuple[dict[str, Any], str | None, str | None]:
    source = fields.mapping(record, "the record")
    if source.keys() != _SEEN_KEYS:
        return source, None, fields.optional_text(source, "split")
    problem = fields.mapping(source["problem"], "the problem")
    split = fields.optional_text(problem, "split") or fields.optional_text(source, "split")
    return problem, fields.text(source["pid"], "pid"), split


def _options(problem: Mapping[str, Any]) -> list[str]:
    value = fields.required(problem, "choices", "the problem")
    if value is None:
        return []
    options = fields.array(value, "choices")
    return [fields.text(option, f"choices[{number}]") for number, option in enumerate(options)]


def _answer(
    problem: Mapping[str, Any], options: list[str], context: Context
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    value = problem.get("answer")
    if value is None:
        return None, (), ()
    if not options:
        given, repairs = questions.answers(value, "answer")
        return (given[0] if given else None), tuple(given), repairs
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise fields.wrong(value, "answer", "the number or the text of an option")
    index = value if isinstance(value, int) else choices.index_of(value, options)
    return choices.answer(index, options, context.settings.answers), choices.accepted(index, options), ()


def _images(problem: Mapping[str, Any], pid: str | None, split: str | None) -> list[MediaReference]:
    image = problem.get("image")
    if not image:
        return []
    if not isinstance(image, str) or pid is None or "/" in image:
        return media_fields.media("image", image, "image")
    splits = [split] if split else list(_SPLITS)
    folders = [folder for name in splits for folder in (f"images/{name}/{pid}/", f"{name}/{pid}/")]
    places = [f"{folder}{image}" for folder in (*folders, f"images/{pid}/", f"{pid}/")]
    return [MediaReference("image", places[0], alternatives=tuple(places[1:]))]


FORMAT = Format(
    name="scienceqa",
    title="ScienceQA, and MathVista's problems",
    schema=(
        '{PID: {"question": TEXT, "choices": [TEXT], "answer": NUMBER, "hint": TEXT, "image": NAME | null,\n'
        '       "lecture": TEXT, "solution": TEXT, "split": "train" | "val" | "test", ...}}'
    ),
    example={
        "17": {
            "question": "Which of these animals lays eggs?",
            "choices": ["the dog", "the hen", "the cow"],
            "answer": 1,
            "hint": "The picture shows three animals of a farm.",
            "image": "image.png",
            "lecture": "Birds lay eggs.",
            "solution": "A hen is a bird.",
            "split": "train",
        }
    },
    traps=(
        "the image is images/<split>/<pid>/image.png, also without images/; problems without one are text alone",
        "the split is the problem's, else that of pid_splits.json beside it, else all three are tried",
        "a hint stands above the question on a line of its own, 'Hint: ...'; the options stand below it",
        "answer counts the choices from 0; text as the answer is one of the choices, or free where they are null",
        "lecture and solution stay in the metadata",
    ),
    keys=frozenset({"question", "choices", "answer", "hint", "image", "lecture", "solution", "split"}),
    matches=matches,
    convert=convert,
    narrower_than=("image-qa", "embedded-media"),
    marks=None,
    companions=(
        Companion(
            name="splits",
            beside=_SPLITS_FILE,
            find=lambda names, source: _SPLITS_FILE if _SPLITS_FILE in names and source != _SPLITS_FILE else None,
            fits=lambda record: (
                isinstance(record, dict) and any(isinstance(record.get(name), list) for name in _SPLITS)
            ),
            build=build,
        ),
    ),
    unfold=unfold,
)
