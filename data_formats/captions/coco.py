"""Captions of COCO: annotation files, lists of results, and the splits of Karpathy. Each caption is one conversation.

Annotations: `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`.
Results, as models give them: `[{"image_id", "caption"}]`.
Karpathy: `{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import documents, fields, image_names, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Candidate, Context, Format
from aria_finetune.data_formats.record import Draft, MediaReference

_OTHER_MEDIA_KEYS = frozenset({"image", "images", "file_name", "video", "video_id", "question"})


def matches_annotations(record: object) -> bool:
    """Lists `images` with `file_name`, and `annotations` with `caption`."""
    if not isinstance(record, dict):
        return False
    images, annotations = record.get("images"), record.get("annotations")
    return documents.is_list_of(images, "id", "file_name") and documents.is_list_of(annotations, "caption", "image_id")


def unfold_annotations(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """Every annotation with its image, then every image that has none."""
    for record in records:
        if not isinstance(record, dict) or not all(
            isinstance(record.get(key), list) for key in ("images", "annotations")
        ):
            # Whatever it is, `convert` says what is wrong with it.
            yield record
            continue
        images = documents.table(record["images"], "id")
        seen: set[str | None] = set()
        for annotation in record["annotations"]:
            number = annotation.get("image_id") if isinstance(annotation, dict) else None
            seen.add(documents.id_text(number))
            yield _item(images, number, annotation)
        for name, image in images.items():
            if name not in seen and image is not None:
                yield {"image": image, "annotation": None}


def convert_annotations(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """One caption that `unfold` made a pair with its image; an image without a caption is good for evaluation only.

    Raises:
        RecordError: `bad_schema`, among others for a caption whose image the file does not list.
    """
    pair = fields.mapping(record, "the record")
    annotation = pair.get("annotation")
    caption, meta = None, {}
    if annotation is not None:
        annotation = fields.mapping(annotation, "the annotation")
        caption = fields.text(fields.required(annotation, "caption", "the annotation"), "caption")
        meta = fields.rest(annotation, ("caption",))
    if pair.get("image") is None:
        raise RecordError("bad_schema", f"no image has the id {meta.get('image_id')!r:.60}")
    image = fields.mapping(pair["image"], "the image")
    name = fields.text(fields.required(image, "file_name", "the image"), "file_name")
    yield _captioned(image_names.named(name), caption, {**meta, "image": fields.rest(image, ("file_name",))})


def matches_results(record: object) -> bool:
    """`image_id` and `caption` without anything else that would name a medium."""
    if not isinstance(record, dict) or not {"image_id", "caption"} <= record.keys():
        return False
    return _OTHER_MEDIA_KEYS.isdisjoint(record)


def convert_results(record: object, context: Context = PLAIN) -> Iterator[Draft]:
    """The one caption of a record.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    caption = fields.text(fields.required(source, "caption", "the record"), "caption")
    number = fields.required(source, "image_id", "the record")
    image = image_names.of_id(number, "image_id", hints=(context.file.name,))
    yield _captioned(image, caption, fields.rest(source, ("caption",)))


def matches_karpathy(record: object) -> bool:
    """A list `images` with `filename` and `sentences`."""
    return isinstance(record, dict) and documents.is_list_of(record.get("images"), "filename", "sentences")


def unfold_karpathy(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """Every image with its sentences."""
    for record in records:
        if isinstance(record, dict) and isinstance(record.get("images"), list):
            yield from record["images"]
        else:
            yield record


def convert_karpathy(record: object, context: Context = PLAIN) -> Iterator[Candidate]:  # noqa: ARG001
    """One conversation for every sentence of an image; an image without one is good for evaluation only.

    Raises:
        RecordError: `bad_schema`, the image has no name or its sentences are no list.
    """
    source = fields.mapping(record, "the image")
    name = fields.text(fields.required(source, "filename", "the image"), "filename")
    folder = fields.optional_text(source, "filepath")
    image = image_names.named(f"{folder}/{name}" if folder and name else name)
    sentences = fields.array(fields.required(source, "sentences", "the image"), "sentences")
    meta = fields.rest(source, ("filename", "filepath", "sentences"))
    if not sentences:
        yield _captioned(image, None, meta)
    for number, sentence in enumerate(sentences):
        try:
            yield _of_sentence(image, sentence, f"sentences[{number}]", meta)
        except RecordError as error:
            yield error


def _item(images: documents.Table, number: object, annotation: object) -> dict[str, Any] | RecordError:
    try:
        return {"image": documents.joined(images, number, "images"), "annotation": annotation}
    except RecordError as error:
        return error


def _of_sentence(image: MediaReference, value: object, where: str, meta: Mapping[str, Any]) -> Draft:
    sentence = fields.mapping(value, where)
    caption = fields.text(fields.required(sentence, "raw", where), f"{where}.raw")
    return _captioned(image, caption, {**meta, "sentence": fields.rest(sentence, ("raw",))})


def _captioned(image: MediaReference, caption: str | None, meta: Mapping[str, Any]) -> Draft:
    references = () if caption is None else (caption,)
    return questions.asked([image], questions.IMAGE_PROMPT, caption, references=references, meta=meta)


ANNOTATIONS = Format(
    name="coco-captions",
    title="COCO captions",
    schema=(
        '{"images": [{"id": ID, "file_name": PATH, "width": PIXELS, "height": PIXELS}],\n'
        ' "annotations": [{"id": ID, "image_id": ID, "caption": TEXT}]}'
    ),
    example={
        "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "width": 640, "height": 480}],
        "annotations": [
            {"id": 1, "image_id": 42, "caption": "A dog runs after a ball."},
            {"id": 2, "image_id": 42, "caption": "A brown dog on a lawn."},
        ],
    },
    traps=(
        "every caption is a record of its own, so that a file has about five times as many as images",
        "a caption whose image is not listed is bad_schema",
        "an image without a caption is empty_answer, unless it is for evaluation",
        "info and licenses describe the file and are not copied into its records",
    ),
    keys=frozenset({"images", "annotations", "info", "licenses", "type"}),
    matches=matches_annotations,
    convert=convert_annotations,
    unfold=unfold_annotations,
)

RESULTS = Format(
    name="coco-caption-results",
    title="Results of captioning COCO",
    schema='[{"image_id": NUMBER, "caption": TEXT}]',
    example={"image_id": 42, "caption": "a dog runs after a ball"},
    traps=(
        "image_id 42 is COCO_val2014_000000000042.jpg, with the split in the name of the file if there is one",
        "it is looked for in val2014/ and images/ as well, and then in the other splits",
        "these are captions a model gave, good to train on only if you know which one",
    ),
    keys=frozenset({"image_id", "caption"}),
    matches=matches_results,
    convert=convert_results,
)

KARPATHY = Format(
    name="karpathy",
    title="Karpathy's splits of COCO, Flickr8k and Flickr30k",
    schema=(
        '{"images": [{"filename": NAME, "filepath": FOLDER, "split": TEXT, "sentences": [{"raw": TEXT, ...}]}],\n'
        ' "dataset": TEXT}'
    ),
    example={
        "dataset": "coco",
        "images": [
            {
                "filepath": "val2014",
                "filename": "COCO_val2014_000000000042.jpg",
                "split": "test",
                "cocoid": 42,
                "sentences": [{"raw": "A dog runs after a ball.", "sentid": 1}],
            }
        ],
    },
    traps=(
        "every sentence is a record of its own",
        "the split of an image stays in the metadata; all of them are converted",
    ),
    keys=frozenset({"images", "dataset"}),
    matches=matches_karpathy,
    convert=convert_karpathy,
    unfold=unfold_karpathy,
)

FORMATS = (ANNOTATIONS, RESULTS, KARPATHY)
