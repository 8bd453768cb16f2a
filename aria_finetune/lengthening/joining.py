"""Parts into one long record: independent pictures one behind the other, and what is said of each as the answer.

So did Aria's authors make their long samples (arXiv 2410.05993): images concatenated, their descriptions the target; long documents;
long videos. Parts are numbered on both sides (`Image 1: ...`), so that an answer can be checked part by part. Knows records, not
how many parts have room.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from aria_finetune import __version__
from aria_finetune.data_formats.building.questions import IMAGE_PROMPT, VIDEO_PROMPT
from aria_finetune.data_formats.documents.pdf_folder import TEXT_PROMPT
from aria_finetune.data_formats.record import Media, Message, Part, Record, Source
from aria_finetune.lengthening.parts import Family, JoinedPart

FORM = "long"
NAMES: dict[Family, str] = {"image": "Image", "video": "Video", "document": "Document", "page": "Page"}
DESCRIBE, WRITE_OUT = "Describe each of the {parts} in order.", "Write out the text of each of the {parts} in order."
ANSWER = "Answer for each of the {parts} in order."
OF_ALL = {"": DESCRIBE, IMAGE_PROMPT: DESCRIBE, VIDEO_PROMPT: DESCRIBE, TEXT_PROMPT: WRITE_OUT}
"""What is asked of all parts at once, where the question of each is what converters ask of data that ask nothing."""


def join(parts: Sequence[JoinedPart], number: int, *, frames: int = 0, **facts: Any) -> Record:
    """One record of parts of one family, in their order.

    Args:
        parts: at least one. Pages keep their own numbers.
        number: of the record among those that are made.
        frames: of each video, where its record asks for fewer.
        facts: JSON values for its `meta`, beside where each part came from.
    """
    family = parts[0].family
    closing, asked_once = question_of_all([part.question for part in parts], family)
    content = [*_shown(parts, with_questions=not asked_once), Part("text", text=closing)]
    answer = "\n".join(f"{label}: {part.answer}" for label, part in zip(labels(parts), parts, strict=True))
    return Record(
        id=f"{FORM}:{family}:{number}",
        messages=(Message("user", tuple(content)), Message("assistant", (Part("text", text=answer),))),
        media=tuple(_with_frames(part.medium, frames) for part in parts),
        references=(),
        tools=None,
        meta=json.dumps({**facts, "parts": [part.origin for part in parts]}, ensure_ascii=False),
        source=Source(FORM, family, number, __version__),
    )


def labels(parts: Sequence[JoinedPart]) -> list[str]:
    """What each part is called, in the question and in the answer."""
    name = NAMES[parts[0].family]
    return [f"{name} {part.medium.page or number}" for number, part in enumerate(parts, 1)]


def question_of_all(questions: Sequence[str], family: Family) -> tuple[str, bool]:
    """The question behind all parts, and whether it stands for those of the parts, which else stand beside each."""
    parts = f"{len(questions)} {family}{'s' if len(questions) > 1 else ''}"
    if len(set(questions)) > 1:
        return f"Answer the question about each of the {parts} in order.", False
    if questions[0] in OF_ALL:
        return OF_ALL[questions[0]].format(parts=parts), True
    return f"{questions[0]}\n{ANSWER.format(parts=parts)}", True


def _shown(parts: Sequence[JoinedPart], *, with_questions: bool) -> Iterator[Part]:
    before = ""
    for place, (label, part) in enumerate(zip(labels(parts), parts, strict=True)):
        yield Part("text", text=f"{before}{label}: ")
        yield Part(part.medium.kind, media=place)
        before = f"\n{part.question}\n" if with_questions else "\n"
    yield Part("text", text=before)


def _with_frames(medium: Media, frames: int) -> Media:
    return replace(medium, num_frames=max(frames, medium.num_frames or 0)) if medium.kind == "video" else medium
