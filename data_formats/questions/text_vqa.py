"""Questions about text in pictures, under the key `data` of one object: TextVQA, and DocVQA with InfographicVQA.

`{"data": [{"question_id", "image_id", "question", "answers": [TEXT]}]}` of TextVQA, with ten people's answers, and
`{"data": [{"questionId", "image", "question", "answers": [TEXT]}]}` of DocVQA, with the answers that count as right.
Both may also come without the object around the list. In a test split the answers are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from aria_finetune.data_formats.building import documents, fields, image_names, media_fields, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_TEXT_IMAGE_KEYS = ("image_id", "file_path")
_DOC_IMAGE_KEYS = ("image", "image_local_name")
_TEXT_FOLDERS = ("train_images/", "test_images/", "val_images/")
_DOC_FOLDERS = ("documents/", "spdocvqa_images/", "infographicsvqa_images/")


def matches_text(record: object) -> bool:
    """A list `data` of questions with `question_id`, or one such question with its `answers` and no `image`."""
    if not isinstance(record, dict):
        return False
    if "data" in record:
        return _is_list(record["data"], "question_id", _TEXT_IMAGE_KEYS)
    return {"question_id", "image_id", "question", "answers"} <= record.keys() and not record.keys() & {
        "image",
        "images",
        "image_path",
        "video",
    }


def matches_doc(record: object) -> bool:
    """A list `data` of questions with `questionId`, or one such question."""
    if not isinstance(record, dict):
        return False
    if "data" in record:
        return _is_list(record["data"], "questionId", _DOC_IMAGE_KEYS)
    return {"questionId", "question"} <= record.keys() and any(key in record for key in _DOC_IMAGE_KEYS)


def unfold(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """Every question, with what the file says of all of them under `document`."""
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("data"), list):
            yield record
            continue
        shared = documents.plain_fields(record)
        for question in record["data"]:
            yield {"question": question, "document": shared}


def convert_text(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """One question of TextVQA, with the answer that most people gave.

    Raises:
        RecordError: `bad_schema`.
    """
    yield _draft(record, _TEXT_IMAGE_KEYS, _text_image, questions.majority)


def convert_doc(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """One question of DocVQA, with its first answer.

    Raises:
        RecordError: `bad_schema`.
    """
    yield _draft(record, _DOC_IMAGE_KEYS, _doc_image, lambda answers: answers[0])


def _is_list(value: object, key: str, image_keys: tuple[str, ...]) -> bool:
    return any(documents.is_list_of(value, "question", key, image_key) for image_key in image_keys)


def _draft(
    record: object,
    image_keys: tuple[str, ...],
    image: Callable[[object, str], MediaReference],
    choose: Callable[[Sequence[str]], str],
) -> Draft:
    item = fields.mapping(record, "the record")
    entry, shared = item, {}
    if item.keys() == {"question", "document"}:
        entry, shared = fields.mapping(item["question"], "the entry"), fields.mapping(item["document"], "document")
    text = fields.text(fields.required(entry, "question", "the entry"), "question")
    key = next((key for key in image_keys if entry.get(key) is not None), None)
    if key is None:
        raise RecordError("bad_schema", f"the entry has no {image_keys[0]!r}")
    given, repairs = questions.answers(entry.get("answers"), "answers")
    # The medium itself keeps the name of its file; an id is worth keeping beside it.
    known = ("question", "answers") if key == "image_id" else ("question", "answers", key)
    meta, dropped = media_fields.without_bytes(documents.together(fields.rest(entry, known), shared, "document"))
    answer = choose(given) if given else None
    notes = (*repairs, *dropped)
    return questions.asked([image(entry[key], key)], text, answer, references=given, meta=meta, repairs=notes)


def _text_image(value: object, key: str) -> MediaReference:
    return image_names.of_id(value, key, *_TEXT_FOLDERS)


def _doc_image(value: object, key: str) -> MediaReference:
    if not isinstance(value, str):
        return media_fields.medium("image", value, key)
    # Pages are numbered by their documents, so the name alone tells them apart, whatever the folder is called.
    name = value.rpartition("/")[2]
    if not name:
        raise RecordError("bad_schema", f"{key} names no file")
    places = (value, name, *(f"{folder}{name}" for folder in ("images/", *_DOC_FOLDERS)))
    first, *others = dict.fromkeys(places)
    return MediaReference("image", first, alternatives=tuple(others))


TEXT_VQA = Format(
    name="textvqa",
    title="TextVQA and ST-VQA",
    schema=(
        '{"data": [{"question_id": ID, "image_id": STEM, "question": TEXT, "answers": [TEXT], ...}],\n'
        ' "dataset_name": TEXT, "dataset_version": TEXT}'
    ),
    example={
        "dataset_name": "textvqa",
        "data": [
            {
                "question_id": 3,
                "image_id": "00a1b2c3",
                "question": "What does the sign say?",
                "answers": ["stop", "stop", "stop here"],
            }
        ],
    },
    traps=(
        "image_id is a stem: .jpg, .png and .jpeg are tried, also in train_images/, test_images/ and images/",
        "the answer is the one given most often, the first given of several; all are references",
        "a test split has no answers: empty_answer, unless it is for evaluation",
    ),
    keys=frozenset({"data", "dataset_name", "dataset_type", "dataset_version"}),
    matches=matches_text,
    convert=convert_text,
    unfold=unfold,
)

DOC_VQA = Format(
    name="docvqa",
    title="DocVQA and InfographicVQA",
    schema=(
        '{"data": [{"questionId": ID, "image": PATH, "question": TEXT, "answers": [TEXT], "docId": ID, ...}],\n'
        ' "dataset_name": TEXT, "dataset_split": TEXT, "dataset_version": TEXT}\n'
        "InfographicVQA calls its image image_local_name; the rows of a Parquet file hold it in image"
    ),
    example={
        "dataset_name": "SP-DocVQA",
        "dataset_split": "val",
        "data": [
            {
                "questionId": 337,
                "question": "What is the date of the letter?",
                "image": "documents/letter_1.png",
                "docId": 279,
                "answers": ["May 3, 1990", "3 May 1990"],
            }
        ],
    },
    traps=(
        "the first answer is the one trained on; all are references",
        "the image is looked for by its path, and by its name alone",
        "its name is looked for in images/, documents/, spdocvqa_images/ and infographicsvqa_images/ as well",
        "a test split has no answers: empty_answer, unless it is for evaluation",
    ),
    keys=frozenset({"data", "dataset_name", "dataset_split", "dataset_version", "questionId", "docId"}),
    matches=matches_doc,
    convert=convert_doc,
    narrower_than=("image-qa", "embedded-media"),
    marks=None,
    unfold=unfold,
)

FORMATS = (TEXT_VQA, DOC_VQA)
