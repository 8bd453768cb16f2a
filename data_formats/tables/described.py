"""What the formats of this room share: the kind of a medium by its name, and drafts of media and what is said of them.

Which column says it is the same everywhere: a question with its answer, else one text, else the name of a class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building import fields, media_bytes, questions
from aria_finetune.data_formats.documents.pdf_folder import TEXT_PROMPT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Candidate
from aria_finetune.data_formats.record import Draft, MediaReference, PartType

CLASS_PROMPTS: dict[PartType, str] = {
    "image": "What does the image show?",
    "video": "What does the video show?",
    "document": "What kind of document is this?",
}
"""What is asked where a source has the name of a class only."""

TEXT_KEYS = ("text", "caption", "captions")
QUESTION_KEYS = ("question", "answer", "answers")

_TEXT_PROMPTS: dict[PartType, str] = {
    "image": questions.IMAGE_PROMPT,
    "video": questions.VIDEO_PROMPT,
    "document": TEXT_PROMPT,
}
_IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "ppm", "pgm", "avif"})
_VIDEO_ENDINGS = frozenset({"mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "flv", "wmv", "ogv"})
_AUDIO_ENDINGS = frozenset({"wav", "mp3", "flac", "ogg", "oga", "opus", "m4a", "aac", "wma"})


def kind_of(name: str) -> PartType | None:
    """What a file is by the ending of its name; None for an ending that says nothing.

    Raises:
        RecordError: `unsupported_modality`, an ending of sound.
    """
    ending = name.rpartition(".")[2].lower()
    if ending in _AUDIO_ENDINGS:
        raise RecordError("unsupported_modality", f"{name!r:.120} is sound: Aria does not hear")
    if ending in _IMAGE_ENDINGS:
        return "image"
    if ending in _VIDEO_ENDINGS:
        return "video"
    return "document" if ending == "pdf" else None


def conversations(
    media: Sequence[MediaReference], source: Mapping[str, Any], known: Collection[str]
) -> Iterator[Candidate]:
    """The conversations of a row whose media stand in the columns `known`; one for each text of a list.

    Raises:
        RecordError: `bad_schema`, also where no column or several may be the text.
    """
    texts = [key for key in TEXT_KEYS if key in source]
    if "question" in source:
        meta, repairs = media_bytes.rest(source, {*known, *QUESTION_KEYS})
        yield answered(media, source, meta, repairs)
    elif len(texts) == 1:
        meta, repairs = media_bytes.rest(source, {*known, texts[0]})
        yield from described(media, source[texts[0]], texts[0], meta, repairs)
    elif "label" in source and not texts:
        meta, repairs = media_bytes.rest(source, {*known, "label"})
        yield classified(media, source["label"], "label", meta, repairs)
    else:
        found = " and ".join(map(repr, texts)) or "no question, text, caption or label"
        raise RecordError("bad_schema", f"the record has {found}; name the column of the answer with --column")


def answered(
    media: Sequence[MediaReference], source: Mapping[str, Any], meta: Mapping[str, Any], repairs: tuple[str, ...]
) -> Draft:
    """The draft of media and the `question` of a record with its `answer`, or the most frequent of its `answers`.

    Raises:
        RecordError: `bad_schema`.
    """
    question = fields.text(fields.required(source, "question", "the record"), "question")
    single, mended = questions.answers(source.get("answer"), "answer")
    several, mended_too = questions.answers(source.get("answers"), "answers")
    answer = questions.majority(single or several) if single or several else None
    if answer is None and not {"answer", "answers"}.isdisjoint(source):
        answer = ""
    if isinstance(source.get("answers"), list) and any(isinstance(item, dict) for item in source["answers"]):
        meta = {**meta, "answers": source["answers"]}
    accepted = [text for text in dict.fromkeys([*single, *several]) if text]
    all_repairs = dict.fromkeys((*repairs, *mended, *mended_too))
    return questions.asked(media, question, answer, references=accepted, meta=meta, repairs=all_repairs)


def described(
    media: Sequence[MediaReference], value: object, where: str, meta: Mapping[str, Any], repairs: tuple[str, ...]
) -> Iterator[Candidate]:
    """A draft for the text that goes with the media, or for each of a list of texts.

    Raises:
        RecordError: `bad_schema`, neither text nor a list.
    """
    prompt = _TEXT_PROMPTS[media[0].kind]
    if not isinstance(value, list) or not value:
        yield _said(media, prompt, [] if isinstance(value, list) else value, where, meta, repairs)
        return
    for number, item in enumerate(value):
        try:
            yield _said(media, prompt, item, f"{where}[{number}]", meta, repairs)
        except RecordError as error:
            yield error


def classified(
    media: Sequence[MediaReference], value: object, where: str, meta: Mapping[str, Any], repairs: tuple[str, ...]
) -> Draft:
    """The draft of media and the name of their class.

    Raises:
        RecordError: `bad_schema`, no text, or a number, for which the names of the classes would be needed.
    """
    if isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal()):
        raise RecordError("bad_schema", f"{where} is the number of a class; its name is needed")
    return _said(media, CLASS_PROMPTS[media[0].kind], value, where, meta, repairs)


def _said(
    media: Sequence[MediaReference],
    prompt: str,
    value: object,
    where: str,
    meta: Mapping[str, Any],
    repairs: tuple[str, ...],
) -> Draft:
    text = "" if value is None or value == [] else fields.text(value, where)
    return questions.asked(media, prompt, text, references=[text] if text else (), meta=meta, repairs=repairs)
