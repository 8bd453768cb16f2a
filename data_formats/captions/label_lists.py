"""Lists of images and the classes they show, as mmpretrain keeps them: the answer is the name of the class.

`{"metainfo": {"classes": [NAME] | "categories": [{"id", "category_name"}]}, "data_list": [{"img_path", "gt_label"}]}`
A label is a number. What it is called stands in `metainfo` or in a file beside the source; without a name there is no
answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import documents, fields, image_names, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Companion, Context, Format
from aria_finetune.data_formats.record import Draft

PROMPT = "What does the image show?"
"""What is asked of an image that has a class."""

_LIST_KEYS = ("classes", "CLASSES", "categories")
_NAME_KEYS = ("category_name", "name")
_NAME_FILES = ("classes.txt", "classes.json", "categories.json", "class_names.txt", "labels.txt")
_ITEM_KEYS = {"entry", "names"}


def matches(record: object) -> bool:
    """A list `data_list` of entries with `img_path`."""
    return isinstance(record, dict) and documents.is_list_of(record.get("data_list"), "img_path")


def unfold(records: Iterator[object], context: Context) -> Iterator[object]:
    """Every entry with the names of its classes."""
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("data_list"), list):
            # Whatever it is, `convert` says what is wrong with it.
            yield record
            continue
        info = record.get("metainfo")
        names = _names(info) if isinstance(info, dict) else {}
        names = names or context.tables.get("classes", {})
        for entry in record["data_list"]:
            yield _item(entry, names)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """One image with the names of its classes; one without a label is good for evaluation only.

    Raises:
        RecordError: `bad_schema`.
    """
    item = fields.mapping(record, "the record")
    entry = fields.mapping(fields.required(item, "entry", "the record"), "the entry")
    names = [fields.text(name, "names") for name in fields.array(fields.required(item, "names", "the record"), "names")]
    path = fields.text(fields.required(entry, "img_path", "the entry"), "img_path")
    answer = ", ".join(names) if names else None
    references = () if answer is None else (answer,)
    meta = fields.rest(entry, ("img_path",))
    yield questions.asked([image_names.named(path)], PROMPT, answer, references=references, meta=meta)


def fits(record: object) -> bool:
    """Whether a record is a name, or an object with names."""
    if not isinstance(record, dict):
        return isinstance(record, str)
    return any(key in record for key in (*_LIST_KEYS, *_NAME_KEYS)) or all(
        isinstance(name, str) for name in record.values()
    )


def build(records: Iterator[object]) -> dict[str, str]:
    """The names of a file: lines or a list in the order of the classes, or an object as in `metainfo` or by number."""
    listed = list(records)
    if len(listed) == 1 and isinstance(listed[0], dict):
        return _names(listed[0]) or {number: name for number, name in listed[0].items() if isinstance(name, str)}
    return _by_number(listed)


def _names(info: Mapping[str, Any]) -> dict[str, str]:
    """The names in `metainfo` by the numbers of the classes; none where it has no list of them."""
    lists = [info[key] for key in _LIST_KEYS if isinstance(info.get(key), list)]
    return _by_number(lists[0]) if lists else {}


def _by_number(entries: list[object]) -> dict[str, str]:
    names: dict[str, str] = {}
    for place, entry in enumerate(entries):
        number, name = documents.id_text(place), entry
        if isinstance(entry, dict):
            number = documents.id_text(entry.get("id", place))
            name = next((entry[key] for key in _NAME_KEYS if key in entry), None)
        if number is not None and isinstance(name, str) and name:
            # Two names for one number are none.
            names[number] = name if names.setdefault(number, name) == name else ""
    return names


def _item(entry: object, names: Mapping[str, str]) -> dict[str, Any] | RecordError:
    label = entry.get("gt_label") if isinstance(entry, dict) else None
    labels = label if isinstance(label, list) else [] if label is None else [label]
    found = [names.get(documents.id_text(number) or "") for number in labels]
    missing = [number for number, name in zip(labels, found, strict=True) if not name]
    if missing:
        return RecordError("bad_schema", f"gt_label {missing[0]!r:.60} has no name in metainfo or a file of classes")
    return {"entry": entry, "names": found}


FORMAT = Format(
    name="label-list",
    title="mmpretrain's lists of images and classes",
    schema=(
        '{"metainfo": {"classes": [NAME] | "categories": [{"id": NUMBER, "category_name": NAME}]},\n'
        ' "data_list": [{"img_path": PATH, "gt_label": NUMBER | [NUMBER]}]}'
    ),
    example={
        "metainfo": {"classes": ["cat", "dog"]},
        "data_list": [{"img_path": "images/42.jpg", "gt_label": 1}],
    },
    traps=(
        f"the question is {PROMPT!r}, the answer the name of the class; of several classes, their names with commas",
        "a number without a name in metainfo, or in a file of classes beside the source, is bad_schema",
        "names without an id count from 0; in classes.txt each line is one",
        "an entry without gt_label, or with an empty list, has no answer: empty_answer, unless it is for evaluation",
    ),
    keys=frozenset({"metainfo", "data_list"}),
    matches=matches,
    convert=convert,
    companions=(
        Companion(
            name="classes",
            beside=" or ".join(_NAME_FILES),
            find=lambda names, source: next((name for name in _NAME_FILES if name in names and name != source), None),
            fits=fits,
            build=build,
        ),
    ),
    unfold=unfold,
)
