"""VQAv2 and what is written like it: OK-VQA, VizWiz and TextVQA of OpenFlamingo, with answers in a second file.

`{"questions": [{"question_id", "image_id", "question"}]}` and
`{"annotations": [{"question_id", "answers": [{"answer"}], "multiple_choice_answer"}]}`, joined by `question_id`.
The answer trained on is the one that most people gave. `multiple_choice_answer` is not asked: VQAv2 has the majority
there, but files made with OpenFlamingo have the first answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import documents, fields, image_names, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Companion, Context, Format
from aria_finetune.data_formats.record import Draft

# Questions of all kinds share one file of annotations, so its name lacks the kind.
_KINDS = ("OpenEnded_", "MultipleChoice_")


def matches(record: object) -> bool:
    """An object with a list `questions` whose entries have `question` and `image_id`."""
    return isinstance(record, dict) and documents.is_list_of(record.get("questions"), "question", "image_id")


def unfold(records: Iterator[object], context: Context) -> Iterator[object]:
    """Every question with its annotation, from the same file or the companion, and what the file says of all."""
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("questions"), list):
            # Whatever it is, `convert` says what is wrong with it.
            yield record
            continue
        rows = context.tables.get("annotations", {})
        if isinstance(record.get("annotations"), list):
            rows = documents.table(record["annotations"], "question_id")
        shared = documents.plain_fields(record)
        for question in record["questions"]:
            yield _item(question, rows, shared)


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """One question that `unfold` made, with its answer if it has an annotation.

    Raises:
        RecordError: `bad_schema`.
    """
    item = fields.mapping(record, "the record")
    question = fields.mapping(fields.required(item, "question", "the record"), "question")
    shared = item["document"] if isinstance(item.get("document"), dict) else {}
    annotation = question if item.get("annotation") is None else fields.mapping(item["annotation"], "annotation")
    _check_image(question, annotation)
    given, answer, repairs = _answers(annotation)
    hints = (str(shared.get("data_subtype")), context.file.name)
    image = image_names.of_id(fields.required(question, "image_id", "question"), "image_id", hints=hints)
    text = fields.text(fields.required(question, "question", "question"), "question.question")
    meta = documents.together(_meta(question, annotation), shared, "document")
    yield questions.asked([image], text, answer, references=given, meta=meta, repairs=repairs)


def annotations_name(names: list[str], source: str) -> str | None:
    """The file of annotations beside `source`: its name with `annotations` for `questions`, with or without a kind."""
    name = source.replace("question", "annotation")
    candidates = [name, *(name.replace(kind, "") for kind in _KINDS)]
    return next((name for name in candidates if name in names and name != source), None)


def fits(record: object) -> bool:
    """Whether a document is one of annotations."""
    return isinstance(record, dict) and documents.is_list_of(record.get("annotations"), "question_id")


def build(records: Iterator[object]) -> documents.Table:
    """The annotations of a document by `question_id`."""
    lists = (record["annotations"] for record in records if isinstance(record, dict) and fits(record))
    return documents.table((row for rows in lists for row in rows), "question_id")


def _item(question: object, rows: documents.Table, shared: dict[str, Any]) -> dict[str, Any] | RecordError:
    number = question.get("question_id") if isinstance(question, dict) else None
    try:
        annotation = documents.joined(rows, number, "annotations")
    except RecordError as error:
        return error
    return {"question": question, "annotation": annotation, "document": shared}


def _check_image(question: Mapping[str, Any], annotation: Mapping[str, Any]) -> None:
    pair = [documents.id_text(row.get("image_id")) for row in (question, annotation)]
    if None not in pair and pair[0] != pair[1]:
        raise RecordError("bad_schema", f"the annotation is of image {pair[1]!r:.60}, the question of {pair[0]!r:.60}")


def _answers(annotation: Mapping[str, Any]) -> tuple[list[str], str | None, tuple[str, ...]]:
    """All answers, the one to train on, and the repairs made."""
    given, repairs = questions.answers(annotation.get("answers"), "answers")
    chosen, more = questions.answers(annotation.get("multiple_choice_answer"), "multiple_choice_answer")
    if not given:
        single, single_repairs = questions.answers(annotation.get("answer"), "answer")
        given, repairs, chosen = (chosen or single), (more if chosen else single_repairs), []
    if not given:
        return [], None, ()
    answer = questions.majority(given)
    differs = ("multiple_choice_answer_differs",) if chosen and chosen != [answer] else ()
    return given, answer, (*repairs, *differs)


def _meta(question: Mapping[str, Any], annotation: Mapping[str, Any]) -> dict[str, Any]:
    known = ["question", "answer"]
    if not questions.says_more(annotation.get("answers")):
        known.append("answers")
    rest = fields.rest(annotation, known)
    return documents.together(fields.rest(question, known), rest, "annotation")


FORMAT = Format(
    name="vqav2",
    title="VQAv2, OK-VQA, VizWiz: questions and annotations in two files, joined by question_id",
    schema=(
        '{"questions": [{"question_id": ID, "image_id": NUMBER | NAME | STEM, "question": TEXT}],\n'
        ' "data_subtype": "val2014"}\n'
        "and beside it, or in the same object:\n"
        '{"annotations": [{"question_id": ID, "image_id": ID, "answers": [{"answer": TEXT, "answer_confidence": TEXT}],\n'
        '                  "multiple_choice_answer": TEXT, "question_type": TEXT, "answer_type": TEXT}]}'
    ),
    example={
        "data_subtype": "val2014",
        "questions": [{"question_id": 4210, "image_id": 42, "question": "What is the dog chasing?"}],
        "annotations": [
            {
                "question_id": 4210,
                "image_id": 42,
                "answers": [{"answer": "ball"}, {"answer": "a ball"}, {"answer": "ball"}],
                "multiple_choice_answer": "ball",
            }
        ],
    },
    traps=(
        "the answer is the one given most often, the first given of several; all are references",
        "multiple_choice_answer stays in the metadata; where it is another, multiple_choice_answer_differs is counted",
        "image_id 42 is COCO_val2014_000000000042.jpg, with the split that data_subtype or the name of the file says",
        "it is looked for in val2014/ and images/ as well, and then in the other splits",
        "image_id as text is a file name, or a stem to which .jpg, .png and .jpeg are tried",
        "a question without an annotation has no answer: empty_answer, unless it is for evaluation",
        "info and license describe the file and are not copied into its records",
    ),
    keys=frozenset({"questions", "annotations", "info", "license", "data_type", "data_subtype", "task_type"}),
    matches=matches,
    convert=convert,
    companions=(
        Companion(
            name="annotations",
            beside="the source's name with 'annotations' for 'questions', with or without 'OpenEnded_'",
            find=annotations_name,
            fits=fits,
            build=build,
        ),
    ),
    unfold=unfold,
)
